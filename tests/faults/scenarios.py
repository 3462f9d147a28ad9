"""placeholder"""


def play(*_: object) -> None:
    """Nothing yet."""
