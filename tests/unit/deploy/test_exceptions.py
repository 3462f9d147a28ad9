"""What a tool asks for is set aside only with a reason, beside what it is about."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BESIDE = r"checkov(?:\.io/skip\d+: |:skip=)(?P<id>\w+)(?:[:=](?P<reason>.+))?$"
PLACES = {
    "deploy/terraform/**/*.tf": BESIDE,
    "deploy/k8s/overlays/**/*.yaml": BESIDE,
    "Dockerfile": BESIDE,
    "deploy/k8s/checkov.yaml": r"^  - (?P<id>\S+)(?:\s+# (?P<reason>.+))?$",
    "deploy/k8s/exceptions.txt": r"^(?P<id>[a-z][\w-]*)(?:\s+# (?P<reason>.+))?$",
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_set_aside_has_a_reason(place: str) -> None:
    texts = [path.read_text() for path in ROOT.glob(place)]
    found = [each for text in texts for each in re.finditer(PLACES[place], text, re.MULTILINE)]
    assert found
    assert [each["id"] for each in found if len((each["reason"] or "").split()) < 2] == []
