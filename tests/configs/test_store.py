"""Schemas made from the signatures of classes and functions, and from dataclasses."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, ValidationError

from delvm.configs.store import schema_of


class Color(Enum):
    red = "red"
    green = "green"


@dataclass
class Net:
    width: int = 4


@dataclass
class Config:
    path: str
    color: Color = Color.red
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    weights: dict[str, float] = field(default_factory=dict)
    net: Net = field(default_factory=Net)
    hook: Callable[[int], int] | None = None

    def validate(self) -> list[str]:
        return [f"path={self.path}"]


class Target:
    def __init__(
        self,
        rate: float,
        steps: int | None = None,
        names: tuple[str, ...] = ("a",),
        hook: Callable[[int], int] | None = None,
        marker: object = object(),  # noqa: B008
        **others: int,
    ) -> None:
        pass


def test_schema_of_a_dataclass_keeps_types_and_validate():
    schema = schema_of(Config)
    node = OmegaConf.structured(schema)
    assert node._target_ == f"{__name__}.Config"
    assert OmegaConf.is_missing(node, "path") and node.color is Color.red
    node.path, node.hook = "x", "anything"
    for key, value in (("color", "blue"), ("sizes", ["x"]), ("net", {"width": "x"})):
        with pytest.raises(ValidationError):
            node[key] = value
    with pytest.raises(ConfigKeyError):
        node["colors"] = "red"
    assert OmegaConf.to_object(node).validate() == ["path=x"]


def test_schema_of_a_signature():
    node = OmegaConf.structured(schema_of(Target, name="Named", target_path="some.where", rate=0.1))
    assert OmegaConf.to_container(node) == {
        "_target_": "some.where",
        "rate": 0.1,
        "steps": None,
        "names": ["a"],
        "hook": None,
    }
    assert OmegaConf.get_type(node).__name__ == "Named"
    with pytest.raises(ValidationError):
        node.steps = "many"
    with pytest.raises(MissingMandatoryValue):
        OmegaConf.structured(schema_of(Target)).rate  # noqa: B018


def test_arguments_can_be_left_out_and_added():
    node = OmegaConf.structured(schema_of(Target, omit=("rate",), _partial_=True))
    assert "rate" not in node and node._partial_ is True


def test_train_schemas_pickle_by_reference():
    """As launchers do it with cloudpickle: the same class comes back, not a copy."""
    cloudpickle = pytest.importorskip("cloudpickle")
    from delvm.configs.train import GROUPS

    for options in GROUPS.values():
        for schema in options.values():
            assert cloudpickle.loads(cloudpickle.dumps(schema)) is schema
            OmegaConf.structured(schema)
