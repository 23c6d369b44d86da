"""Parts of a run that are not in DeLVM: each is one class, chosen by one YAML in ../conf."""
