# What the stand-ins have in common; sourced by them. A stand-in has the name of somebody else's NBD server, understands
# the part of its command line that `blksnap serve` has too, and runs that; for the rest it runs the other server.
# It notes which of the two it was in $INTEROP_NOTE, so that a test passed by the other server is never counted as ours.
#
# Environment: INTEROP_ROOT this checkout, INTEROP_NOTE a file, INTEROP_TMP a directory for images, INTEROP_OTHER set:
# always the other server.

name=$(basename "$0")
arguments=("$@")

# The server that this one stands in for: its own program.
real() {
  echo "other: $name ${arguments[*]@Q}" >>"$INTEROP_NOTE"
  exec_real
}

# The same for a question about the server itself (its version, its plugins), which is no test of a server.
exec_real() {
  local program=INTEROP_REAL_${name//-/_}
  exec "${!program:-/usr/bin/$name}" "${arguments[@]}"
}

# note_ours PID: the server that runs instead.
note_ours() { printf 'ours: %s\npid: %s\n' "$name ${arguments[*]@Q}" "$1" >>"$INTEROP_NOTE"; }

# new_image SIZE: a sparse image, its path in $image.
new_image() {
  image=$(mktemp "$INTEROP_TMP/image.XXXXXX")
  truncate -s "$1" "$image" || exit 1
}

# to_bytes TEXT: a size as nbdkit and QEMU write it.
to_bytes() { numfmt --from=iec "$(tr '[:lower:]' '[:upper:]' <<<"${1%[bB]}")"; }

# wait_listening SOCKET|PORT: until a server listens there, 30 s at most.
wait_listening() {
  for _ in $(seq 600); do
    case $1 in
      */*) grep -qF " $1" /proc/net/unix && return ;;
      *) grep -q ":$(printf %04X "$1") .* 0A " /proc/net/tcp /proc/net/tcp6 && return ;;
    esac
    sleep 0.05
  done
  echo "$name: nothing listens on $1" >&2
  return 1
}

# pid_when_listening FILE SOCKET|PORT PID: writes a pid file as soon as clients can come.
pid_when_listening() { (wait_listening "$2" && echo "$3" >"$1") >/dev/null 2>&1 </dev/null & }

[ -z "${INTEROP_OTHER:-}" ] || exec_real
