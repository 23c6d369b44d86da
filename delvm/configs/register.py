"""The schemas of a verb, put into Hydra's ConfigStore when the verb is known."""

from delvm.configs.store import Groups, store


def schemas(verb: str) -> tuple[type, Groups]:
    """The schema of a verb, and those of the options of its groups."""
    # Imported here: those of train import torch and Lightning, which the others need not wait for.
    if verb == "train":
        from delvm.configs.train import SCHEMAS

        return SCHEMAS[verb]
    from delvm.configs import verbs

    return verbs.ROOTS[verb], verbs.groups(verb)


def register(verb: str) -> None:
    """Make the schemas of a verb known to Hydra; to repeat it does no harm."""
    store(verb, *schemas(verb))
