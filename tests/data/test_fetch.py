"""Downloads from a real server on the loopback address that misbehaves on demand."""

import gzip
import hashlib
import io
import re
import shutil
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from biocnn.data import fetch as fetch_module
from biocnn.data.fetch import fetch
from biocnn.errors import DownloadError

BODY = np.random.default_rng(0).bytes(300_000)


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; `server.faults[path]` lists what goes wrong with the next requests, one each."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = self.path.split("?")[0]
        wanted = self.headers.get("Range")
        self.server.log.append((path, wanted, self.headers.get("If-Range")))
        faults = self.server.faults.get(path, [])
        fault = faults.pop(0) if faults else ""
        body = self.server.files.get(path)
        if fault == "redirect":
            self.send_response(302)
            self.send_header("Location", "/moved" + path)
            self.end_headers()
            return
        if fault == "html":
            self.answer(200, b"<html>Please log in</html>", {"Content-Type": "text/html; charset=utf-8"})
            return
        if body is None or fault == "404":
            self.send_error(404)
            return
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        headers = {"Content-Type": "application/octet-stream", "ETag": etag}
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        if self.headers.get("If-Range", etag) != etag or fault == "ignore range":
            start = 0
        if start >= len(body):
            self.answer(416, b"", {})
            return
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        part = body[start:]
        if fault == "corrupt":
            part = bytes([part[0] ^ 1]) + part[1:]
        sent = part[: len(part) // 2] if fault == "drop" else part
        self.answer(206 if start else 200, sent, headers, announced=len(part))

    def answer(self, status, body, headers, announced=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if announced is None else announced))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.faults, server.log = {}, {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def described(site, path="/x.bin", body=BODY, **fields):
    """Entry of `files:` for a body that the site serves, with its true size and sum."""
    site.files[path] = body
    return {
        "name": path.strip("/"),
        "url": site.url + path,
        "bytes": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
    } | fields


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_file_arrives_whole_and_nothing_else_stays(site, make_manifest, tmp_path):
    seen, said = [], []
    result = fetch(make_manifest(files=(described(site),)), tmp_path, lambda *args: seen.append(args), said.append)
    assert [file.status for file in result] == ["fetched"]
    assert (tmp_path / "x.bin").read_bytes() == BODY
    assert names(tmp_path) == ["x.bin"]
    assert seen[-1] == ("x.bin", len(BODY), len(BODY))
    assert re.search(r"1 of 1 files to fetch.*disk needed.*free in", said[0])


def test_what_is_there_is_not_fetched_again(site, make_manifest, tmp_path):
    manifest = make_manifest(files=(described(site),))
    fetch(manifest, tmp_path)
    requests_before = len(site.log)
    assert [file.status for file in fetch(manifest, tmp_path)] == ["already there"]
    assert len(site.log) == requests_before


def test_a_file_of_the_user_that_differs_is_left_alone(site, make_manifest, tmp_path):
    (tmp_path / "x.bin").write_bytes(b"mine")
    with pytest.raises(DownloadError, match=r"x.bin is there already, but has 4 bytes.*move it away"):
        fetch(make_manifest(files=(described(site),)), tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == b"mine"
    assert site.log == []


def test_a_dropped_connection_is_taken_up_where_it_broke(site, make_manifest, tmp_path):
    site.faults["/x.bin"] = ["drop", "drop"]
    fetch(make_manifest(files=(described(site),)), tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == BODY
    half, three_quarters = len(BODY) // 2, len(BODY) // 2 + len(BODY) // 4
    assert [wanted for _, wanted, _ in site.log] == [None, f"bytes={half}-", f"bytes={three_quarters}-"]


def test_a_second_run_goes_on_with_what_the_first_left(site, make_manifest, tmp_path):
    manifest = make_manifest(files=(described(site),))
    site.faults["/x.bin"] = ["drop", "404"]
    with pytest.raises(DownloadError, match=r"(?s)answered 404.*150,000 bytes are kept in .*\.part") as caught:
        fetch(manifest, tmp_path)
    assert "run it again" in str(caught.value)
    fetch(manifest, tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == BODY
    assert site.log[-1][1] == "bytes=150000-"
    assert names(tmp_path) == ["x.bin"]


def test_a_file_that_changed_meanwhile_is_started_again(site, make_manifest, tmp_path):
    """Without a checksum only the ETag can tell that the first half is of an older version."""
    entry = described(site, bytes=None, sha256=None)
    site.faults["/x.bin"] = ["drop", "404"]
    with pytest.raises(DownloadError, match="404"):
        fetch(make_manifest(files=(entry,)), tmp_path)
    newer = BODY[::-1]
    site.files["/x.bin"] = newer
    fetch(make_manifest(files=(entry,)), tmp_path)
    assert site.log[-1][2] == f'"{hashlib.md5(BODY).hexdigest()}"'
    assert (tmp_path / "x.bin").read_bytes() == newer


def test_a_server_without_ranges_starts_again(site, make_manifest, tmp_path):
    site.faults["/x.bin"] = ["drop", "ignore range"]
    fetch(make_manifest(files=(described(site),)), tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == BODY


def test_a_server_that_always_breaks_off_is_given_up(site, make_manifest, tmp_path):
    site.faults["/x.bin"] = ["drop"] * 100
    with pytest.raises(DownloadError, match=r"the connection broke off at .* bytes, again"):
        fetch(make_manifest(files=(described(site),)), tmp_path)


def test_a_damaged_part_of_an_earlier_run_is_thrown_away(site, make_manifest, tmp_path):
    manifest = make_manifest(files=(described(site),))
    site.faults["/x.bin"] = ["drop", "404"]
    with pytest.raises(DownloadError):
        fetch(manifest, tmp_path)
    (part,) = tmp_path.glob(".*.part")
    part.write_bytes(bytes(1000))
    fetch(manifest, tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == BODY


def test_a_part_longer_than_the_file_is_thrown_away(site, make_manifest, tmp_path):
    manifest = make_manifest(files=(described(site),))
    site.faults["/x.bin"] = ["drop", "404"]
    with pytest.raises(DownloadError):
        fetch(manifest, tmp_path)
    (part,) = tmp_path.glob(".*.part")
    part.write_bytes(BODY + b"more")
    fetch(manifest, tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == BODY


@pytest.mark.parametrize("fault", ["404", "html", "corrupt"])
def test_the_mirror_helps_out(site, make_manifest, tmp_path, fault):
    site.faults["/x.bin"] = [fault]
    site.files["/mirror"] = BODY
    fetch(make_manifest(files=(described(site, mirrors=(site.url + "/mirror",)),)), tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == BODY
    assert [path for path, _, _ in site.log] == ["/x.bin", "/mirror"]


def test_a_web_page_instead_of_the_file_is_recognised_without_a_checksum(site, make_manifest, tmp_path):
    site.faults["/x.bin"] = ["html"]
    with pytest.raises(DownloadError, match="answered with a web page instead of the file"):
        fetch(make_manifest(files=(described(site, bytes=None, sha256=None),)), tmp_path)
    assert names(tmp_path) == []


def test_the_mirror_goes_on_with_the_part_of_the_first_address(site, make_manifest, tmp_path):
    site.faults["/x.bin"] = ["drop", "404"]
    site.files["/mirror"] = BODY
    fetch(make_manifest(files=(described(site, mirrors=(site.url + "/mirror",)),)), tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == BODY
    assert site.log[-1] == ("/mirror", "bytes=150000-", None)


def test_redirects_are_followed(site, make_manifest, tmp_path):
    site.faults["/x.bin"] = ["redirect"]
    site.files["/moved/x.bin"] = BODY
    fetch(make_manifest(files=(described(site),)), tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == BODY


def test_wrong_content_leaves_nothing_and_says_both_sums(site, make_manifest, tmp_path):
    site.faults["/x.bin"] = ["corrupt"]
    with pytest.raises(DownloadError, match=r"what arrived has sha256 \w+\.\.\., expected \w+"):
        fetch(make_manifest(files=(described(site),)), tmp_path)
    assert names(tmp_path) == []


def test_another_size_is_refused_before_it_is_downloaded(site, make_manifest, tmp_path):
    entry = described(site, bytes=len(BODY) + 1)
    with pytest.raises(DownloadError, match="announces 300,000 bytes, the manifest says 300,001"):
        fetch(make_manifest(files=(entry,)), tmp_path)
    assert names(tmp_path) == []


def test_nobody_answers(make_manifest, tmp_path):
    entry = {"name": "x.bin", "url": "http://127.0.0.1:9/x.bin"}
    with pytest.raises(DownloadError, match=r"x.bin could not be fetched:\n  http://127.0.0.1:9/x.bin"):
        fetch(make_manifest(files=(entry,)), tmp_path)


def test_gzip_is_unpacked_and_its_content_verified(site, make_manifest, tmp_path):
    entry = described(
        site,
        "/x.h5.gz",
        gzip.compress(BODY),
        name="x.h5",
        unpack="gzip",
        unpacked_md5=hashlib.md5(BODY).hexdigest(),
    )
    fetch(make_manifest(files=(entry,)), tmp_path)
    assert (tmp_path / "x.h5").read_bytes() == BODY
    assert names(tmp_path) == ["x.h5"]
    assert fetch(make_manifest(files=(entry,)), tmp_path)[0].status == "already there"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (gzip.compress(BODY)[:-20], "what arrived is not a whole gzip file"),
        (b"no gzip at all", "what arrived is not a whole gzip file"),
        (gzip.compress(BODY[:-1]), "once unpacked it has md5"),
    ],
)
def test_a_bad_gzip_leaves_nothing(site, make_manifest, tmp_path, body, message):
    entry = described(site, "/x.gz", body, name="x", unpack="gzip", unpacked_md5=hashlib.md5(BODY).hexdigest())
    with pytest.raises(DownloadError, match=message):
        fetch(make_manifest(files=(entry,)), tmp_path)
    assert names(tmp_path) == []


def test_a_gzip_bomb_is_stopped(site, make_manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "_RATIO_FREE_BYTES", 1 << 20)
    bomb = gzip.compress(bytes(30 << 20))
    assert len(bomb) * 200 < 30 << 20
    with pytest.raises(DownloadError, match=r"unpacks to more than .* bytes, which is not plausible"):
        fetch(make_manifest(files=(described(site, "/b.gz", bomb, name="b", unpack="gzip"),)), tmp_path)
    assert names(tmp_path) == []


def zip_of(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_of(members, mode="w:gz"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


PAIRS = [("images/1.png", b"image"), ("masks/1.png", b"mask"), ("__MACOSX/._1.png", b"litter")]


@pytest.mark.parametrize(
    ("kind", "body"), [("zip", zip_of(PAIRS)), ("tar", tar_of(PAIRS)), ("tar", tar_of(PAIRS, "w"))]
)
def test_archives_are_unpacked_into_the_root(site, make_manifest, tmp_path, kind, body):
    manifest = make_manifest(files=(described(site, "/a", body, name=".", unpack=kind),))
    assert fetch(manifest, tmp_path)[0].status == "fetched"
    assert names(tmp_path) == ["images/1.png", "masks/1.png"]
    assert (tmp_path / "masks/1.png").read_bytes() == b"mask"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "masks"]
    assert fetch(manifest, tmp_path)[0].status == "already there"


def test_an_archive_does_not_overwrite_a_file_that_differs(site, make_manifest, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.png").write_bytes(b"mine")
    manifest = make_manifest(files=(described(site, "/a", zip_of(PAIRS), name=".", unpack="zip"),))
    with pytest.raises(DownloadError, match=r"there already and differ.*images/1.png.*Move them away"):
        fetch(manifest, tmp_path)
    assert names(tmp_path) == ["images/1.png"]
    assert (tmp_path / "images/1.png").read_bytes() == b"mine"


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def zip_link(name, target):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info, target


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        ("tar", tar_of([("../outside.txt", b"x")]), "unsafe name '../outside.txt'"),
        ("tar", tar_of([("/tmp/outside.txt", b"x")]), "unsafe name '/tmp/outside.txt'"),
        ("tar", tar_of([(link("out", ".."), b""), ("out/outside.txt", b"x")]), "'out', a link or device"),
        ("zip", zip_of([("../outside.txt", b"x")]), "unsafe name '../outside.txt'"),
        ("zip", zip_of([("..\\outside.txt", b"x")]), "unsafe name"),
        ("zip", zip_of([("C:/outside.txt", b"x")]), "unsafe name"),
        ("zip", zip_of([zip_link("out", "..")]), "'out', a link or device"),
        ("zip", b"no archive", "cannot be unpacked as zip"),
        ("tar", b"no archive", "cannot be unpacked as tar"),
        ("zip", zip_of(PAIRS)[:-30], "cannot be unpacked as zip"),
    ],
)
def test_unsafe_archives_write_nothing(site, make_manifest, tmp_path, kind, body, message):
    root = tmp_path / "root"
    manifest = make_manifest(files=(described(site, "/a", body, name=".", unpack=kind),))
    with pytest.raises(DownloadError, match=re.escape(message)):
        fetch(manifest, root)
    assert names(tmp_path) == []
    assert list(root.iterdir()) == []


def test_a_zip_bomb_is_stopped(site, make_manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "_RATIO_FREE_BYTES", 1 << 20)
    body = zip_of([("zeros.bin", bytes(30 << 20))])
    manifest = make_manifest(files=(described(site, "/a", body, name=".", unpack="zip"),))
    with pytest.raises(DownloadError, match="not plausible"):
        fetch(manifest, tmp_path)
    assert names(tmp_path) == []


def test_too_little_disk_is_said_before_anything_is_fetched(site, make_manifest, tmp_path):
    too_much = shutil.disk_usage(tmp_path).total
    entry = described(site) | {"bytes": too_much}
    with pytest.raises(DownloadError, match=r"GB free, and drawn needs about .* GB. Free some space"):
        fetch(make_manifest(files=(entry,)), tmp_path)
    assert site.log == []


def test_a_set_that_needs_an_account_says_what_to_do(make_manifest, tmp_path):
    manifest = make_manifest(manual_download="Register at https://host/ and unpack both parts.")
    with pytest.raises(
        DownloadError, match=r"cannot be fetched by a program. Register at .*\n.*biocnn data verify drawn"
    ):
        fetch(manifest, tmp_path)
    with pytest.raises(DownloadError, match="lists no files to fetch"):
        fetch(make_manifest(), tmp_path)


def test_root_that_cannot_be_made(site, make_manifest, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="cannot be written to"):
        fetch(make_manifest(files=(described(site),)), tmp_path / "file" / "root")
