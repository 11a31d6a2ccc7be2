"""How a spec refuses values that are right by themselves and wrong together."""

from pydantic_core import PydanticCustomError


def refusal(field: str, said: str) -> PydanticCustomError:
    """To be raised by a validator of a whole object: *said* at its *field*, a path such as ``components[1].name``."""
    return PydanticCustomError("value_error", "{said}", {"said": said, "field": field})
