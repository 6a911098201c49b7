"""Builds what a guest boots: Debian's kernel, Debian's tools and Python, and this package.

Everything comes from Debian packages, by ``mmdebstrap``, which works as root and as a user with
subordinate uids. The base is kept in a cache directory; the wheel is built anew when the package's
sources have changed.
"""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

from newc import Archive

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
SUITE = "trixie"  # Debian 13: its kernel and its cxl-cli know volatile CXL regions
MIRROR = "http://deb.debian.org/debian"
PACKAGES = "linux-image-amd64 cxl daxctl kmod python3 python3-msgpack python3-click python3-rich"
BUILD_PACKAGES = (
    "g++ cmake ninja-build python3-dev python3-pip python3-scikit-build-core python3-nanobind"
)
WHEEL_SOURCES = ("CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "lmcache_beluga")

#: Runs outside the new root, which is $1: kernel and packed root go to $1/out.
PACK = r"""
set -eu
cd "$1"
mkdir out
cp boot/vmlinuz-* out/vmlinuz
dpkg-query --admindir=var/lib/dpkg -W > out/packages
rm -rf boot usr/share/doc usr/share/man usr/share/locale usr/lib/udev usr/lib/systemd
rm -rf var/cache/apt var/lib/apt/lists
cd usr/lib/modules/*
find kernel -name '*.ko*' | grep -vE '^kernel/drivers/(cxl|dax|nvdimm)/' | xargs rm -f
cd "$1"
mkdir -p proc sys run
find . -xdev \( -path ./out -o -path './dev/*' -o -path './proc/*' -o -path './sys/*' \
  -o -path './tmp/*' \) -prune -o -print0 > out/files
chroot . sh -c 'cpio --quiet --null -o -H newc < out/files | lz4 -q -l -1 > out/base.img'
"""


@dataclass(frozen=True)
class Image:
    kernel: Path
    initrd: Path
    #: Package name -> version, of what runs in the guest.
    packages: dict[str, str]


def build(cache: Path, directory: Path, *, wheel: Path | None, mirror: str = MIRROR) -> Image:
    """Kernel and initramfs, this one in ``directory``.

    ``wheel`` saves building one; it must suit Python 3.13."""
    cache.mkdir(parents=True, exist_ok=True)
    base = _base(cache, mirror)
    wheel = wheel or _wheel(cache, mirror)
    initrd = directory / "initrd.img"
    # The compressed one goes last: nothing tells where it ends.
    initrd.write_bytes(_package(wheel).pack() + (base / "base.img").read_bytes())
    lines = (base / "packages").read_text().splitlines()
    packages = {
        name.partition(":")[0]: version for name, _, version in (x.partition("\t") for x in lines)
    }
    return Image(base / "vmlinuz", initrd, packages)


def _base(cache: Path, mirror: str) -> Path:
    recipe = hashlib.sha256(f"{SUITE} {PACKAGES} {PACK}".encode()).hexdigest()[:16]
    base = cache / f"base-{recipe}"
    if not (base / "packages").exists():  # the last one to be copied
        base.mkdir(exist_ok=True)
        pack = cache / "pack.sh"
        pack.write_text(PACK)
        hooks = [f'sh {pack} "$1"']
        hooks += [f"copy-out /out/{name} {base}" for name in ("vmlinuz", "base.img", "packages")]
        _mmdebstrap(f"{PACKAGES} cpio lz4", hooks, mirror)
    return base


def _wheel(cache: Path, mirror: str) -> Path:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *WHEEL_SOURCES],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    sources = listed.stdout.splitlines()
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.encode() + b"\0" + (REPOSITORY / source).read_bytes())
    directory = cache / f"wheel-{digest.hexdigest()[:16]}"
    found = list(directory.glob("*.whl"))
    if found:
        return found[0]
    directory.mkdir(exist_ok=True)
    archive = cache / "sources.tar"
    subprocess.run(["tar", "-cf", archive, "-C", REPOSITORY, *sources], check=True)
    make = (
        "cd /source && python3 -m pip wheel --no-build-isolation --no-deps --no-index -w /wheel ."
    )
    hooks = [
        'mkdir "$1/source"',
        f"tar-in {archive} /source",
        f"chroot \"$1\" sh -c '{make}'",
        f"sync-out /wheel {directory}",
    ]
    _mmdebstrap(BUILD_PACKAGES, hooks, mirror)
    return next(directory.glob("*.whl"))


def _mmdebstrap(packages: str, hooks: list[str], mirror: str) -> None:
    command = ["mmdebstrap", "--quiet", "--variant=apt", f"--include={packages}", "--format=null"]
    command += ["--dpkgopt=path-exclude=/usr/share/locale/*"]
    command += [f"--customize-hook={hook}" for hook in hooks]
    subprocess.run([*command, SUITE, "-", mirror], check=True)


def _package(wheel: Path) -> Archive:
    archive = Archive()
    with zipfile.ZipFile(wheel) as content:
        for name in content.namelist():
            if not name.endswith("/"):
                archive.add(f"usr/lib/python3/dist-packages/{name}", content.read(name))
    archive.add("usr/bin/beluga", b'#!/bin/sh\nexec python3 -m lmcache_beluga "$@"\n', 0o755)
    for script in ("agent.py", "content.py"):
        archive.add(f"beluga/{script}", (HERE / "inside" / script).read_bytes())
    archive.add("init", (HERE / "inside" / "init").read_bytes(), 0o755)
    return archive
