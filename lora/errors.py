"""How this room complains."""


class ModelError(Exception):
    """The base model or an adapter cannot be used as asked; the message says what to do."""
