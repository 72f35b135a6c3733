"""The journal's catalog explains every record that nannyd can write."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

from nannyd.supervisor import notices
from nannyd.supervisor.notices import Notice

TEXT = (Path(__file__).parents[2] / "packaging/systemd/nannyd.catalog").read_text()
ENTRIES = dict(re.findall(r"^-- ([0-9a-f]{32})\n(.*?)(?=\n-- |\Z)", TEXT, re.MULTILINE | re.DOTALL))
NOTICES = [
    pytest.param(notice, id=notice.event) for notice in vars(notices).values() if isinstance(notice, Notice)
]
ALWAYS = {"NANNYD_INSTANCE"}


def test_catalog_has_each_notice_once_and_nothing_else() -> None:
    found = re.findall(r"^-- ([0-9a-f]{32})$", TEXT, re.MULTILINE)
    assert sorted(found) == sorted(param.values[0].message_id for param in NOTICES)  # type: ignore[union-attr]


@pytest.mark.parametrize("notice", NOTICES)
def test_entry_has_a_head_and_an_explanation(notice: Notice) -> None:
    head, _, body = ENTRIES[notice.message_id].partition("\n\n")
    assert re.fullmatch(r"Subject: \S.*\nDefined-By: nannyd\nDocumentation: man:\S+(?: man:\S+)*", head)
    assert len(body.split()) >= 15
    assert max(map(len, body.splitlines())) <= 85


@pytest.mark.parametrize("notice", NOTICES)
def test_entry_names_only_fields_that_the_record_has(notice: Notice) -> None:
    fields = {name.upper() for _, name, _, _ in string.Formatter().parse(notice.text) if name}
    assert set(re.findall(r"@([A-Z_]+)@", ENTRIES[notice.message_id])) <= fields | ALWAYS
