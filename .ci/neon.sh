#!/usr/bin/env bash
# Builds for aarch64 and runs `cargo test` with the given arguments under qemu, so that the NEON kernels run on any machine.
#
#   .ci/neon.sh [arguments of cargo test]
#
# It takes the compiler's own aarch64 std where rustup can fetch it, else Debian's compiler and std. Exit status 77: something is
# missing here that only root can install.
set -euo pipefail
cd "$(dirname "$0")/.."

target=aarch64-unknown-linux-gnu
missing() {
  echo "missing here: $*"
  exit 77
}
have() { command -v "$1" >/dev/null 2>&1; }
has_std() { [ -d "$("$1" --print sysroot)/lib/rustlib/$target/lib" ]; }

# Debian ships the std of each architecture as a package of that architecture, so it is unpacked beside the host's own.
debian_std() {
  apt-get install -y -qq --no-install-recommends rustc-web >/dev/null
  has_std /usr/bin/rustc && return
  local version scratch options
  version=$(dpkg-query -W -f '${Version}' libstd-rust-web-dev)
  scratch=$(mktemp -d)
  chmod 755 "$scratch"
  mkdir -p "$scratch/lists/partial"
  options=(-o "Dir::State::Lists=$scratch/lists" -o APT::Architectures::=amd64 -o APT::Architectures::=arm64)
  apt-get "${options[@]}" update -qq
  (cd "$scratch" && apt-get "${options[@]}" -qq download "libstd-rust-web-dev:arm64=$version")
  dpkg -x "$scratch"/libstd-rust-web-dev_*_arm64.deb "$scratch/unpacked"
  cp -r "$scratch/unpacked/usr/lib/rustlib/$target" /usr/lib/rustlib/
  rm -rf "$scratch"
}

if ! have aarch64-linux-gnu-gcc || ! have qemu-aarch64; then
  [ "$(id -u)" = 0 ] && have apt-get || missing "aarch64-linux-gnu-gcc, qemu-aarch64"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user >/dev/null
fi
if ! has_std rustc && ! { have rustup && rustup target add "$target"; }; then
  if ! { [ -x /usr/bin/rustc ] && has_std /usr/bin/rustc; }; then
    [ "$(id -u)" = 0 ] && have apt-get || missing "the std of $target"
    debian_std
  fi
  export RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc
fi

export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/neon"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
exec cargo test --target "$target" "$@"
