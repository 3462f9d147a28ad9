"""How much a property test tries."""

from hypothesis import settings


def examples(thorough: int) -> int:
    """So many in a thorough run, and the profile's share of them in a quick one."""
    return max(2, thorough * settings().max_examples // 100)
