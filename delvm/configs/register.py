"""The schemas of a verb, put into Hydra's ConfigStore when the verb is known."""

from delvm.configs.store import store


def register(verb: str) -> None:
    """Make the schemas of a verb known to Hydra; to repeat it does no harm."""
    # Imported here: those of train import torch and Lightning, which the others need not wait for.
    if verb == "train":
        from delvm.configs.train import SCHEMAS

        store(verb, *SCHEMAS[verb])
    else:
        from delvm.configs import verbs

        store(verb, verbs.ROOTS[verb], verbs.groups(verb))
