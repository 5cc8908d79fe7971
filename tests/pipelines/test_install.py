"""pip's settings, as uv is given them."""

import pytest

from pipelines.install import uv_environment

STRATEGY = {"UV_INDEX_STRATEGY": "unsafe-best-match"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", {}),
        ("global.extra-index-url='\\nfile:///a\\nfile:///b'", {"UV_EXTRA_INDEX_URL": "file:///a file:///b"}),
        ("global.find-links='/a /b'\nglobal.cert='/c.crt'", {"UV_FIND_LINKS": "/a,/b", "SSL_CERT_FILE": "/c.crt"}),
        (":env:.index-url='3'\ndownload.index-url='4'\nglobal.index-url='1'\ninstall.index-url='2'", {"UV_INDEX_URL": "3"}),
        (":env:.default-timeout='9'\nglobal.disable-pip-version-check='1'", {}),
    ],
)  # fmt: skip
def test_settings_are_handed_on_those_of_the_environment_last(settings: str, expected: dict[str, str]) -> None:
    assert uv_environment(settings) == STRATEGY | expected


@pytest.mark.parametrize("name", ["global.no-index", "install.only-binary", ":env:.trusted-host", "global.proxy"])
def test_pip_installs_where_a_setting_has_no_counterpart(name: str) -> None:
    assert uv_environment(f"global.find-links='/a'\n{name}='1'") is None
