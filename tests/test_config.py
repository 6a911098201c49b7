"""The settings: what is accepted, what is refused and how, and where a value comes from."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from lmcache_beluga.config import SETTINGS, Settings
from lmcache_beluga.errors import BelugaError, SettingError
from lmcache_beluga.pool_arguments import AttachArguments, FormatArguments

GIB = 1 << 30


def read(environ: dict[str, str] | None = None, **extra: Any) -> Settings:
    return Settings.from_extra_config({f"beluga.{k}": v for k, v in extra.items()}, environ or {})


def refusal(environ: dict[str, str] | None = None, **extra: Any) -> str:
    with pytest.raises(SettingError) as caught:
        read(environ, **extra)
    return str(caught.value)


def test_the_defaults() -> None:
    settings = read()
    assert settings == Settings()
    assert settings.pool == ()
    assert settings.size is None
    assert (settings.host_id, settings.max_hosts) == (0, 1)
    assert (settings.lease_ms, settings.pin_timeout_ms) == (10_000, 300_000)
    assert (settings.heartbeat_ms, settings.dead_after_ms) == (100, 5_000)
    assert (settings.mode, settings.visibility) == (0o600, "coherent")


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read().size = 1  # type: ignore[misc]


def test_other_keys_are_ignored() -> None:
    extra = {
        "storage_plugin.beluga.module_path": "lmcache_beluga",
        "storage_plugin.beluga.class_name": "BelugaBackend",
        "save_only_first_rank": True,
        "belugas": 1,
        17: "a key that is no text",
    }
    assert Settings.from_extra_config(extra, {}) == Settings()  # type: ignore[arg-type]
    assert Settings.from_extra_config(None, {}) == Settings()


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("64GiB", 64 * GIB),
        ("64gib", 64 * GIB),
        ("64 GiB", 64 * GIB),
        ("64Gi", 64 * GIB),
        ("64G", 64 * GIB),
        ("64 GB", 64 * 10**9),
        ("1.5TiB", 3 * (1 << 39)),
        ("512MiB", 512 << 20),
        ("4096", 4096),
        ("4096B", 4096),
        (4096, 4096),
        (1e9, 10**9),
        ("2PiB", 2 << 50),
    ],
)
def test_sizes(value: object, size: int) -> None:
    assert read(size=value).size == size


@pytest.mark.parametrize(
    "value",
    ["", "0", "-1", "64 GiBB", "GiB", "1..5G", "1e9GiB", "64 bananas", True, [64], {"a": 1}],
)
def test_malformed_sizes(value: object) -> None:
    message = refusal(size=value)
    assert message.startswith("beluga.size (extra_config): cannot use ")
    assert "give a size such as 64GiB" in message


@pytest.mark.parametrize(
    ("value", "milliseconds"),
    [
        ("10s", 10_000),
        ("500ms", 500),
        ("2m", 120_000),
        ("2 min", 120_000),
        ("1h", 3_600_000),
        ("10", 10_000),
        (10, 10_000),
        (0.5, 500),
        ("1.5s", 1500),
        ("500000us", 500),
    ],
)
def test_durations(value: object, milliseconds: int) -> None:
    assert read(lease=value).lease_ms == milliseconds


@pytest.mark.parametrize("value", ["", "10 parsecs", "-1s", "0", "0.1ms", False, None.__class__])
def test_malformed_durations(value: object) -> None:
    message = refusal(heartbeat=value)
    assert message.startswith("beluga.heartbeat (extra_config): cannot use ")
    assert "give a duration of 1 ms or more such as 10s, 500ms, 2m" in message


@pytest.mark.parametrize("value", ["0660", "0o660", "660", 0o660])
def test_modes(value: object) -> None:
    assert read(mode=value).mode == 0o660


@pytest.mark.parametrize("value", ["0999", "rw-rw----", 660, 600, "0777", "0060", "1660", True, ""])
def test_malformed_modes(value: object) -> None:
    assert "give an octal file mode in quotes such as '0600'" in refusal(mode=value)


@pytest.mark.parametrize("value", [True, "true", "True", "yes", "on", "1", 1])
def test_true(value: object) -> None:
    assert read(takeover=value).takeover is True


@pytest.mark.parametrize("value", [False, "false", "no", "OFF", "0", 0])
def test_false(value: object) -> None:
    assert read(prefault=value).prefault is False


@pytest.mark.parametrize("value", ["maybe", "", 2, 1.0, []])
def test_malformed_booleans(value: object) -> None:
    assert refusal(takeover=value).endswith("give true or false")


@pytest.mark.parametrize("value", [64, -1, "x", 1.5, True, "0x1"])
def test_malformed_host_ids(value: object) -> None:
    assert refusal(host_id=value).endswith("give a whole number from 0 to 63")


def test_visibility() -> None:
    assert read(visibility="noncoherent").visibility == "noncoherent"
    assert refusal(visibility="none").endswith("give coherent or noncoherent")
    assert read(payload_visibility="direct").payload_visibility == "direct"
    assert refusal(payload_visibility="ddio").endswith("give flush or direct")


def test_uuid() -> None:
    uuid = "01234567-89ab-cdef-0123-456789abcdef"
    assert read(uuid=uuid).uuid == uuid
    assert read(uuid=uuid.replace("-", "").upper()).uuid == uuid
    assert "32 hexadecimal digits" in refusal(uuid="1234")


def test_pool_as_path_or_list() -> None:
    assert read(pool="/dev/shm/a").pool == ("/dev/shm/a",)
    assert read(pool=["/dev/dax0.0", "/dev/dax1.0"]).pool == ("/dev/dax0.0", "/dev/dax1.0")
    # In YAML a text is one path, whatever is in it; a list is there for several.
    assert read(pool="/mnt/a:b,c").pool == ("/mnt/a:b,c",)


def test_pool_in_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert read(pool="~/pool").pool == ("/home/someone/pool",)


@pytest.mark.parametrize("text", ["/a:/b", "/a,/b", "/a,/b,", " /a : /b "])
def test_pool_in_the_environment(text: str) -> None:
    assert read({"BELUGA_POOL": text}).pool == ("/a", "/b")


@pytest.mark.parametrize("value", ["", " ", [], [""], [1], 5, {"a": "b"}, ["/a", "/a"], "/a\0b"])
def test_malformed_pools(value: object) -> None:
    assert "give a path such as /dev/shm/beluga.pool, or a list" in refusal(pool=value)


def test_null_in_yaml_is_not_set() -> None:
    assert read(size=None, uuid=None) == Settings()


def test_unknown_setting_names_the_nearest() -> None:
    message = refusal(poool="/x")
    assert message.startswith("unknown setting beluga.poool: did you mean beluga.pool? Known are ")
    assert "beluga.size, beluga.host_id, " in message
    assert "did you mean beluga.host_id?" in refusal(hostid=1)
    assert "did you mean beluga.lease?" in refusal(lease_ms=1)
    assert "did you mean beluga.dead_after?" in refusal(DEAD_AFTER="1s")
    assert "did you mean beluga." in refusal(zzz=1)


def test_the_environment_wins_over_extra_config() -> None:
    settings = read(
        {"BELUGA_SIZE": "2GiB", "BELUGA_HOST_ID": ""}, size="1GiB", host_id=0, pool="/p"
    )
    assert (settings.size, settings.host_id, settings.pool) == (2 * GIB, 0, ("/p",))


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELUGA_LEASE", "3s")
    assert Settings.from_environ().lease_ms == 3_000
    assert Settings.from_extra_config({"beluga.lease": "4s"}).lease_ms == 3_000


def test_malformed_variable_is_named() -> None:
    message = refusal({"BELUGA_SIZE": "big"})
    assert message.startswith("BELUGA_SIZE (environment): cannot use 'big' (")


def test_misspelt_variable_is_refused() -> None:
    message = refusal({"BELUGA_HOSTID": "1"})
    assert message.startswith("unknown setting BELUGA_HOSTID: did you mean BELUGA_HOST_ID?")


def test_variables_of_others_are_ignored() -> None:
    kubernetes = {
        "BELUGA_SERVICE_HOST": "10.0.0.1",
        "BELUGA_SERVICE_PORT": "80",
        "BELUGA_PORT": "tcp://10.0.0.1:80",
        "BELUGA_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert Settings.from_environ(kubernetes) == Settings()


def test_contradictions() -> None:
    assert "set beluga.max_hosts to 4 or more" in refusal(size="1GiB", host_id=3)
    assert read(host_id=3).host_id == 3  # joins a pool that exists
    assert "beluga.dead_after is 1000 ms" in refusal(heartbeat="500ms", dead_after="1s")
    assert "beluga.lease is 100 ms" in refusal(lease="100ms")


def test_setting_error_is_a_value_error_of_this_package() -> None:
    assert issubclass(SettingError, ValueError)
    assert issubclass(SettingError, BelugaError)


def test_pool_arguments_need_a_pool() -> None:
    with pytest.raises(SettingError, match=r"beluga\.pool is not set: .*BELUGA_POOL"):
        Settings().pool_arguments()


def test_pool_arguments_leave_out_what_is_not_set() -> None:
    arguments = read(pool="/p", lease="3s").pool_arguments()
    assert arguments["path"] == ("/p",)
    assert arguments["lease_ms"] == 3_000
    assert arguments.keys().isdisjoint({"size", "uuid", "key_scheme", "extent_size", "pool"})


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_each_default_can_be_written_as_a_setting(setting: Any) -> None:
    if setting.default in (None, ()):
        assert setting.default_text
    else:
        value = setting.read(setting.default_text, "here")
        assert value == setting.default == setting.read(setting.kind.show(value), "here")


def test_names_are_unique_and_documented() -> None:
    assert len({s.name for s in SETTINGS}) == len(SETTINGS) == len(dataclasses.fields(Settings))
    for setting in SETTINGS:
        assert setting.meaning.endswith(".")
        assert setting.variable == "BELUGA_" + setting.name.upper()
        assert "|" not in setting.meaning + setting.default_text


def test_pool_takes_every_setting_and_no_other() -> None:
    taken = {f.name for c in (AttachArguments, FormatArguments) for f in dataclasses.fields(c)}
    # To format over a pool in use is a decision of the moment.
    assert {s.pool_argument for s in SETTINGS if s.of_pool} == taken - {"force"} | {"path", "size"}


def test_defaults_are_those_of_the_pool() -> None:
    for arguments in (AttachArguments(), FormatArguments()):
        for field in dataclasses.fields(arguments):
            if field.name != "force":
                default = getattr(arguments, field.name)
                assert (getattr(Settings(), field.name) or default) == default, field.name


# ---- names without a prefix, as LMCache's adapter_params have them


def named(environ: dict[str, str] | None = None, **names: Any) -> Settings:
    return Settings.from_names(names, "adapter_params", environ or {})


def test_names_are_the_settings_without_prefix() -> None:
    settings = named(pool="/dev/dax0.0", size="64GiB", lease="5s", host_id=None)
    assert settings == read(pool="/dev/dax0.0", size="64GiB", lease="5s")
    assert Settings.from_names({"beluga.size": "64GiB"}, "here", {}).size == 64 * GIB
    assert named({"BELUGA_SIZE": "1GiB"}, size="64GiB").size == GIB


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"pol": "/x"}, "adapter_params: unknown setting pol: did you mean pool? Known are pool, "),
        ({"size": "lots"}, "size (adapter_params): cannot use 'lots'"),
        ({"size": 1, "beluga.size": 1}, "adapter_params: size and beluga.size are one setting"),
        ({"host_id": 5, "size": "1GiB"}, "set beluga.max_hosts to 6 or more"),
    ],
)
def test_wrong_names(names: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        Settings.from_names(names, "adapter_params", {})
    assert message in str(caught.value)
