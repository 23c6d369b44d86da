"""LightningModules for the tokenizer, the student and its distillation, and what they share."""
