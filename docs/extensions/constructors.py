"""An extension of griffe: a class made by `__new__` is shown with that one's arguments."""

from typing import Any

import griffe


class NewAsInit(griffe.Extension):
    """Show `__new__` as `__init__` for classes that have only the former."""

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        if "__new__" in cls.members and "__init__" not in cls.members:
            constructor = cls.members.pop("__new__")
            constructor.name = "__init__"
            constructor.docstring = None  # the class's own says what the arguments are
            cls.set_member("__init__", constructor)
