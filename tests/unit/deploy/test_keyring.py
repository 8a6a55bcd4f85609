"""Certificates of a site: made, renewed, followed by a new authority, brought and checked."""

import datetime as dt
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from authority import Authority, lock
from skerry.deploy.certificates import Issued, bundle, facts, issue, new_authority, problems_of, read, trusted
from skerry.deploy.keyring import Keyring, Wish
from skerry.errors import ConfigError, Unavailable

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
NAMES = ("capture", "buffer", "broker", "operator")
WISH = Wish(site="gate2", names=NAMES)
RENEW = Wish(site="gate2", names=NAMES, renew=True)


def serials(folder: Path) -> dict[str, int]:
    found = {name: folder / name / "tls.crt" for name in NAMES} | {
        "authority": folder / "authority" / "ca.crt"
    }
    return {name: serial(path) for name, path in found.items()}


def serial(path: Path) -> int:
    return facts(read(path.read_bytes(), "")[0]).serial


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


@pytest.fixture
def ring(tmp_path) -> Path:
    Keyring(tmp_path, NOW).provide(WISH)
    return tmp_path


class TestMaking:
    def test_everybody_gets_a_certificate_that_is_good(self, ring):
        assert Keyring(ring, NOW).problems(NAMES, ("broker", "localhost", "127.0.0.1")) == []

    def test_common_name_is_the_name_on_the_bus_and_nobody_is_server_and_client(self, ring):
        for name in NAMES:
            (certificate,) = read((ring / name / "tls.crt").read_bytes(), name)
            assert facts(certificate).name == name
            purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            assert [p._name for p in purposes] == ["serverAuth" if name == "broker" else "clientAuth"]
            assert facts(certificate).hosts == (
                ("broker", "localhost", "127.0.0.1") if name == "broker" else ()
            )

    def test_authority_may_have_none_below_it(self, ring):
        (certificate,) = read((ring / "authority" / "ca.crt").read_bytes(), "")
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)

    def test_only_the_owner_may_read_what_was_written(self, ring):
        for path in ring.rglob("*"):
            if path.name != ".lock":
                assert path.stat().st_mode & 0o077 == 0, path

    def test_folder_of_a_module_has_its_own_key_and_nobody_elses(self, ring):
        keys = [(ring / name / "tls.key").read_bytes() for name in NAMES]
        assert len(set(keys)) == len(NAMES)
        for name in NAMES:
            assert sorted(p.name for p in (ring / name).iterdir()) == ["ca.crt", "tls.crt", "tls.key"]

    def test_what_is_there_and_good_stays(self, ring):
        before = serials(ring)
        done = Keyring(ring, NOW + DAY).provide(WISH)
        assert {entry.done for entry in done} == {"kept"}
        assert serials(ring) == before

    def test_new_module_gets_a_certificate_and_others_keep_theirs(self, ring):
        before = serials(ring)
        done = Keyring(ring, NOW).provide(Wish(site="gate2", names=(*NAMES, "capture-hall")))
        assert {e.name for e in done if e.done == "made"} == {"capture-hall"}
        assert serials(ring) == before

    def test_other_hosts_make_another_certificate_of_the_broker_alone(self, ring):
        before = serials(ring)
        Keyring(ring, NOW).provide(Wish(site="gate2", names=NAMES, hosts=("gw.local", "10.0.0.1", "::1")))
        assert changed(before, serials(ring)) == {"broker"}
        assert Keyring(ring, NOW).problems(NAMES, ("gw.local", "10.0.0.1", "::1")) == []
        after = serials(ring)
        Keyring(ring, NOW).provide(WISH)
        assert serials(ring) == after

    def test_another_site_is_refused_the_folder(self, ring):
        with pytest.raises(ConfigError, match="expected the authority of hall, got that of gate2"):
            Keyring(ring, NOW).provide(Wish(site="hall", names=NAMES))

    @pytest.mark.parametrize("host", ["a b", "*.local", "gate\n", "ü.local", "a..b", "-" * 3])
    def test_host_that_is_none_is_refused(self, tmp_path, host):
        with pytest.raises(ConfigError, match="--hosts: expected names and addresses"):
            Keyring(tmp_path, NOW).provide(Wish(site="gate2", names=NAMES, hosts=(host,)))

    @pytest.mark.parametrize("spoil", ["key", "certificate", "swapped", "other site's"])
    def test_what_is_no_good_is_made_again(self, ring, tmp_path_factory, spoil):
        own = ring / "capture"
        if spoil == "key":
            (own / "tls.key").write_bytes((ring / "buffer" / "tls.key").read_bytes())
        elif spoil == "certificate":
            (own / "tls.crt").write_bytes(b"nothing")
        else:
            source = ring / "buffer"
            if spoil != "swapped":
                Keyring(other := tmp_path_factory.mktemp("other"), NOW).provide(WISH)
                source = other / "capture"
            for name in ("tls.crt", "tls.key"):
                (own / name).write_bytes((source / name).read_bytes())
        done = {e.name: e.done for e in Keyring(ring, NOW).provide(WISH)}
        assert done.pop("capture").startswith("made again")
        assert set(done.values()) == {"kept"}
        assert Keyring(ring, NOW).problems(NAMES) == []

    def test_half_an_authority_is_not_replaced(self, ring):
        key = (ring / "authority" / "ca.key").read_bytes()
        (ring / "authority" / "ca.crt").unlink()
        with pytest.raises(ConfigError, match=r"authority/ca\.crt: expected the certificate of"):
            Keyring(ring, NOW).provide(WISH)
        assert (ring / "authority" / "ca.key").read_bytes() == key

    def test_authority_whose_key_is_elsewhere_signs_nothing(self, ring):
        (ring / "authority" / "ca.key").unlink()
        assert not Keyring(ring, NOW).signs
        for name in NAMES:
            (ring / name / "tls.crt").unlink()
        assert not Keyring(ring, NOW).signs

    def test_long_lives_are_not_cut_short_by_the_authority(self, tmp_path):
        done = Keyring(tmp_path, NOW).provide(Wish(site="gate2", names=NAMES, days=3650))
        assert {e.facts.ends for e in done} == {NOW + 3650 * DAY, NOW + 3 * 3650 * DAY}
        done = Keyring(tmp_path, NOW).provide(Wish(site="gate2", names=NAMES, days=3650, renew=True))
        assert {e.done for e in done} == {"kept"}

    def test_two_at_once_do_not_mix(self, ring):
        with (
            Keyring(ring, NOW)._alone(),
            pytest.raises(Unavailable, match="another skerry certs is at work"),
        ):
            Keyring(ring, NOW).provide(RENEW)

    def test_folder_that_cannot_be_written_is_named(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(Unavailable, match=f"{tmp_path}/file"):
            Keyring(tmp_path / "file" / "certs", NOW).provide(WISH)

    def test_key_is_in_no_text_that_python_makes_of_it(self):
        assert "key" not in repr(new_authority("gate2", NOW, 1))
        assert "PRIVATE" not in repr(new_authority("gate2", NOW, 1))


class TestAnInterruptedExchange:
    """The two files are renamed one behind the other: a power cut may come between."""

    def test_is_completed_where_the_key_is_new_already(self, ring):
        new = issue(self.authority(ring), "capture", NOW, 30)
        (ring / "capture" / "tls.key").write_bytes(new.key)
        (ring / "capture" / "tls.crt.new").write_bytes(new.certificate)
        assert {e.done for e in Keyring(ring, NOW).provide(WISH)} == {"kept"}
        assert (ring / "capture" / "tls.crt").read_bytes() == new.certificate

    def test_is_forgotten_where_nothing_was_renamed(self, ring):
        before = serials(ring)
        new = issue(self.authority(ring), "capture", NOW, 30)
        (ring / "capture" / "tls.key.new").write_bytes(new.key)
        (ring / "capture" / "tls.crt.new").write_bytes(new.certificate)
        Keyring(ring, NOW).provide(WISH)
        assert serials(ring) == before
        assert sorted(p.name for p in (ring / "capture").iterdir()) == ["ca.crt", "tls.crt", "tls.key"]

    def test_of_the_authority_is_completed_too_and_the_old_one_trusted(self, ring):
        old = (ring / "authority" / "ca.crt").read_bytes()
        new = new_authority("gate2", NOW, 4000)
        (ring / "authority" / "old.crt").write_bytes(old)
        (ring / "authority" / "ca.key").write_bytes(new.key)
        (ring / "authority" / "ca.crt.new").write_bytes(new.certificate)
        Keyring(ring, NOW).provide(WISH)
        assert (ring / "authority" / "ca.crt").read_bytes() == new.certificate
        assert (ring / "capture" / "ca.crt").read_bytes() == new.certificate + old
        assert Keyring(ring, NOW).problems(NAMES) == []

    @staticmethod
    def authority(ring: Path) -> Issued:
        files = ((ring / "authority" / name).read_bytes() for name in ("ca.crt", "ca.key"))
        return Issued(certificate=next(files), key=next(files))


class TestRenewing:
    @pytest.mark.parametrize(("after", "renewed"), [(243, False), (244, True), (366, True)])
    def test_default_is_a_third_of_the_life(self, ring, after, renewed):
        before = serials(ring)
        Keyring(ring, NOW + after * DAY).provide(RENEW)
        assert changed(before, serials(ring)) == (set(NAMES) if renewed else set())

    @pytest.mark.parametrize(("within", "renewed"), [(29, False), (31, True)])
    def test_within_is_in_days_before_the_end(self, ring, within, renewed):
        before = serials(ring)
        wish = Wish(site="gate2", names=NAMES, renew=True, within=within * DAY)
        Keyring(ring, NOW + 335 * DAY).provide(wish)
        assert changed(before, serials(ring)) == (set(NAMES) if renewed else set())

    def test_same_authority_signs_new_keys_for_the_same_hosts(self, ring):
        keys = [(ring / name / "tls.key").read_bytes() for name in NAMES]
        Keyring(ring, NOW).provide(Wish(site="gate2", names=NAMES, hosts=("gw.local",)))
        later = NOW + 300 * DAY
        Keyring(ring, later).provide(RENEW)
        assert not {*keys} & {(ring / name / "tls.key").read_bytes() for name in NAMES}
        assert Keyring(ring, later + 300 * DAY).problems(NAMES, ("gw.local",)) == []

    def test_without_it_what_is_due_is_said_and_stays(self, ring):
        before = serials(ring)
        done = {e.name: e.done for e in Keyring(ring, NOW + 300 * DAY).provide(WISH)}
        assert done == {**dict.fromkeys(NAMES, "due"), "authority": "kept"}
        assert serials(ring) == before

    def test_authority_that_would_end_first_is_followed_and_stays_trusted(self, ring):
        old = (ring / "authority" / "ca.crt").read_bytes()
        chain = (ring / "capture" / "tls.crt").read_bytes()
        later = NOW + 3300 * DAY
        done = {e.name: e.done for e in Keyring(ring, later).provide(RENEW)}
        assert done["authority"] == "renewed"
        new = (ring / "authority" / "ca.crt").read_bytes()
        for name in NAMES:
            assert (ring / name / "ca.crt").read_bytes() == new + old
        assert Keyring(ring, later).problems(NAMES) == []
        # Who has not been told of the new one yet is let in by who has, while the old one lasts.
        assert trusted(chain, (ring / "broker" / "ca.crt").read_bytes(), later)
        assert facts(read((ring / "capture" / "tls.crt").read_bytes(), "")[0]).ends == later + 365 * DAY

    def test_old_authority_is_forgotten_once_it_has_ended(self, ring):
        Keyring(ring, NOW + 3300 * DAY).provide(RENEW)
        Keyring(ring, NOW + 3651 * DAY).provide(RENEW)
        assert (ring / "capture" / "ca.crt").read_bytes() == (ring / "authority" / "ca.crt").read_bytes()

    def test_authority_that_has_ended_signs_nothing_more(self, ring):
        with pytest.raises(
            ConfigError, match=r"authority/ca.crt: .* ended on 2036-02-27 \(run with --renew\)"
        ):
            Keyring(ring, NOW + 3651 * DAY).provide(WISH)
        Keyring(ring, NOW + 3651 * DAY).provide(RENEW)
        assert Keyring(ring, NOW + 3651 * DAY).problems(NAMES) == []

    def test_certificate_does_not_outlive_its_authority(self, tmp_path):
        Keyring(tmp_path, NOW).provide(Wish(site="gate2", names=NAMES, days=365, authority_days=30))
        (certificate,) = read((tmp_path / "capture" / "tls.crt").read_bytes(), "")
        assert facts(certificate).ends == NOW + 30 * DAY


class TestBrought:
    """Certificates of another authority, in the same files."""

    @pytest.fixture
    def brought(self, tmp_path) -> Path:
        authority = Authority(tmp_path / "elsewhere")
        folder = tmp_path / "certs"
        for name in NAMES:
            hosts = ("broker", "localhost") if name == "broker" else ()
            self.bring(authority, folder, name, *hosts)
        return folder

    @staticmethod
    def bring(authority: Authority, folder: Path, name: str, *hosts: str, **options: object) -> None:
        certificate, key = authority.issue(name, *hosts, **options)
        (folder / name).mkdir(parents=True, exist_ok=True)
        for source, file in ((authority.ca, "ca.crt"), (certificate, "tls.crt"), (key, "tls.key")):
            (folder / name / file).write_bytes(source.read_bytes())
            (folder / name / file).chmod(0o600)

    def problems(self, folder: Path) -> list[str]:
        return Keyring(folder, dt.datetime.now(dt.UTC)).problems(NAMES, ("broker",))

    def test_good_ones_are_found_to_be_good(self, brought):
        assert self.problems(brought) == []
        assert not Keyring(brought, NOW).signs

    def test_every_error_is_found_at_once(self, brought, tmp_path):
        ours = Authority(tmp_path / "elsewhere2")
        self.bring(ours, brought, "capture")
        (brought / "buffer" / "tls.key").write_bytes((brought / "operator" / "tls.key").read_bytes())
        (brought / "operator" / "tls.crt").unlink()
        (brought / "broker" / "tls.key").chmod(0o644)
        assert self.problems(brought) == [
            "buffer/tls.key: expected the key of buffer/tls.crt, got another",
            "broker/tls.key: expected a file for its owner alone, got mode 644 (chmod 600)",
            "operator/tls.crt: expected a file, got nothing",
            "capture/tls.crt: expected one signed by an authority in broker/ca.crt, got another's",
            "capture/ca.crt: expected the authority of broker/tls.crt, got others",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "options", "problem"),
        [
            ("capture", {"common": "buffer"}, "expected the common name 'capture', got 'buffer'"),
            ("capture", {"days": (-7.0, -1.0)}, "expected one that lasts, got one that ended on"),
            ("capture", {"days": (1.0, 3.0)}, "expected one that counts already, got one that begins on"),
            ("broker", {}, "expected the hosts broker too, got none"),
        ],
    )
    def test_certificate_that_is_no_good_says_why(self, brought, tmp_path, name, options, problem):
        authority = Authority(tmp_path / "elsewhere3")
        for each in NAMES:
            self.bring(authority, brought, each, *(("broker",) if each == "broker" else ()))
        self.bring(authority, brought, name, **options)
        (found,) = self.problems(brought)
        assert found.startswith(f"{name}/tls.crt: {problem}")

    def test_key_with_a_password_and_files_of_something_else_are_named(self, brought, tmp_path):
        locked = lock(brought / "capture" / "tls.key", "secret")
        (brought / "capture" / "tls.key").write_bytes(locked.read_bytes())
        (brought / "buffer" / "tls.crt").write_bytes(b"\xff\x00 nothing of the kind")
        (brought / "operator" / "tls.key").write_bytes(b"nothing of the kind")
        (brought / "broker" / "ca.crt").write_bytes(b"")
        assert self.problems(brought) == [
            "capture/tls.key: expected an unencrypted key, got one with a password",
            "buffer/tls.crt: expected PEM certificates, got something else",
            "operator/tls.key: expected a PEM private key, got something else",
            "broker/ca.crt: expected PEM certificates, got something else",
        ]

    def test_broker_with_a_certificate_for_clients_is_refused(self, ring):
        found = Issued(
            certificate=(ring / "operator" / "tls.crt").read_bytes(),
            key=(ring / "operator" / "tls.key").read_bytes(),
        )
        assert list(problems_of("broker", "operator", found, NOW, ())) == [
            "broker/tls.crt: expected one that is good for a server, got one for other purposes"
        ]


class TestTrust:
    def test_leads_over_what_follows_the_certificate(self, tmp_path):
        """As with an authority that keeps its own key in a safe and signs with one below it."""
        now = dt.datetime.now(dt.UTC)
        root = Authority(tmp_path)
        below = new_authority("gate2", now, 10)
        key = load_pem_private_key(below.key, None)
        certificate = (
            root._builder(read(below.certificate, "")[0].subject, key.public_key(), (-1.0, 5.0))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(root._key, SHA256())
            .public_bytes(Encoding.PEM)
        )
        leaf = issue(Issued(certificate=certificate, key=below.key), "capture", now, 1).certificate
        assert trusted(leaf + certificate, root.ca.read_bytes(), now)
        assert not trusted(leaf, root.ca.read_bytes(), now)

    def test_ends_with_the_authority(self):
        authority = new_authority("gate2", NOW, 10)
        leaf = issue(authority, "capture", NOW, 5).certificate
        assert trusted(leaf, authority.certificate, NOW + 9 * DAY)
        assert not trusted(leaf, authority.certificate, NOW + 10 * DAY)
        assert not trusted(leaf, new_authority("gate2", NOW, 10).certificate, NOW)

    def test_leaf_is_no_authority(self):
        authority = new_authority("gate2", NOW, 10)
        leaf = issue(authority, "capture", NOW, 5)
        forged = issue(leaf, "buffer", NOW, 5).certificate
        assert not trusted(forged + leaf.certificate, authority.certificate, NOW)

    def test_bundle_has_each_once_and_none_that_ended(self):
        one, two = (new_authority("gate2", NOW, days).certificate for days in (5, 10))
        assert bundle([two, one + two], NOW) == two + one
        assert bundle([two, one + two], NOW + 5 * DAY) == two


def test_openssl_takes_what_was_made(tmp_path):
    """Two ends in memory, with the clock of today."""
    Keyring(tmp_path, dt.datetime.now(dt.UTC)).provide(WISH)

    def context(name: str, purpose: int) -> ssl.SSLContext:
        made = ssl.SSLContext(purpose)
        made.load_verify_locations(tmp_path / name / "ca.crt")
        made.load_cert_chain(tmp_path / name / "tls.crt", tmp_path / name / "tls.key")
        made.verify_mode = ssl.CERT_REQUIRED
        return made

    wires = [ssl.MemoryBIO() for _ in range(2)]
    server = context("broker", ssl.PROTOCOL_TLS_SERVER).wrap_bio(wires[0], wires[1], server_side=True)
    client = context("capture", ssl.PROTOCOL_TLS_CLIENT).wrap_bio(
        wires[1], wires[0], server_hostname="localhost"
    )
    ends = [client, server]
    for _ in range(6):
        for end in list(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)
    assert ends == []
    subject = dict(pair for (pair,) in server.getpeercert()["subject"])
    assert subject == {"organizationName": "gate2", "commonName": "capture"}
