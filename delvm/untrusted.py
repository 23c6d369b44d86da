"""JSON and arrays from files that are not trusted: parsed, and checked before they are used.

A schema of a JSON value has the form of what it describes:

    int, str, bool, float, dict, list    a value of that type; float takes integers too
    None                                 null
    (int, None)                          any one of these
    [str]                                a list of such values
    {"key": int, "other?": str}          an object with these keys alone; "?" marks an optional one
"""

import io
import json
import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from delvm.errors import UserError

Schema: TypeAlias = Any

_NAMES: dict[Any, str] = {
    int: "an integer", str: "text", bool: "true or false", float: "a number", dict: "an object",
    list: "a list", None: "null",
}  # fmt: skip


def schema_error(value: Any, schema: Schema, name: str = "") -> str | None:
    """What is wrong with a value, or None.

    Args:
        value: from JSON.
        schema: as above.
        name: of the value, for the message ("shards[2].file").
    """
    if isinstance(schema, tuple):
        errors = [schema_error(value, each, name) for each in schema]
        return None if None in errors else errors[0]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return _wrong_type(value, list, name)
        found = (schema_error(each, schema[0], f"{name}[{i}]") for i, each in enumerate(value))
        return next((error for error in found if error), None)
    if isinstance(schema, dict):
        return _object_error(value, schema, name)
    if schema is None:
        return None if value is None else _wrong_type(value, None, name)
    fits = type(value) is schema or (schema is float and type(value) is int)
    return None if fits else _wrong_type(value, schema, name)


def _object_error(value: Any, schema: dict[str, Schema], name: str) -> str | None:
    if not isinstance(value, dict):
        return _wrong_type(value, dict, name)
    known = {key.removesuffix("?"): each for key, each in schema.items()}
    lead = f"{name}: " if name else ""
    if missing := [key for key in schema if key[-1:] != "?" and key not in value]:
        return f"{lead}{', '.join(missing)} missing"
    if unknown := [key for key in value if key not in known]:
        return f"{lead}unknown keys {', '.join(map(repr, unknown))}"
    path = f"{name}." if name else ""
    errors = (schema_error(value[key], known[key], f"{path}{key}") for key in value)
    return next((error for error in errors if error), None)


def _wrong_type(value: Any, kind: type | None, name: str) -> str:
    return f"{name or 'it'} is {str(value)[:60]!r}, not {_NAMES[kind]}"


def parse_json(text: str | bytes, what: str, schema: Schema = dict) -> Any:
    """A value from JSON text that is not trusted.

    Args:
        text: UTF-8.
        what: where it is from, for the message ("manifest PATH").
        schema: of the value.

    Raises:
        UserError: it is not JSON, or has another form.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise UserError(f"{what} cannot be read: it is nested too deeply") from None
    except ValueError as error:  # also invalid UTF-8, and integers of thousands of digits
        raise UserError(f"{what} cannot be read: {error}") from None
    if wrong := schema_error(value, schema):
        raise UserError(f"{what}: {wrong}")
    return value


def parse_npy(data: bytes | memoryview) -> npt.NDArray[Any]:
    """The array in the bytes of a .npy file; it shares their memory.

    Raises:
        ValueError: they are damaged, hold objects, or are not as many as the header states.
    """
    file = io.BytesIO(data)
    try:
        major, _ = np.lib.format.read_magic(file)
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        shape, fortran_order, dtype = read[major](file)
    except Exception as error:  # numpy parses the header as Python, whose errors are many
        raise ValueError(f"not an array: {type(error).__name__}: {error}") from None
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, not numbers")
    left = len(data) - file.tell()
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != left:
        raise ValueError(f"{left:,} bytes of data for {dtype} {shape}")
    array = np.frombuffer(data, dtype, offset=file.tell())
    return array.reshape(shape, order="F" if fortran_order else "C")
