# Every NBD command through libnbd, in each style of headers; and bad ones, with libnbd's own checks switched off.
# usage: nbd-commands.py URI

import errno
import sys

import nbd

uri = sys.argv[1]


def connect(structured, extended):
    h = nbd.NBD()
    h.add_meta_context("base:allocation")
    h.set_request_structured_replies(structured)
    if hasattr(h, "set_request_extended_headers"):
        h.set_request_extended_headers(extended)
    h.connect_uri(uri)
    return h


def fails(wanted, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum == wanted, (error, wanted)
    else:
        raise AssertionError("%s%r did not fail" % (call, args))


def commands(h, structured):
    size = h.get_size()
    assert size == 16 * 1024 * 1024
    data = bytes(range(256)) * 16
    h.pwrite(data, 8192)
    h.pwrite(data, 12288, nbd.CMD_FLAG_FUA)
    assert h.pread(8192, 8192) == data * 2
    if structured:
        seen = []
        h.pread_structured(4096, 8192, lambda buf, off, status, err: seen.append((off, bytes(buf))), nbd.CMD_FLAG_DF)
        assert seen == [(8192, data)], seen
    h.zero(4096, 8192, nbd.CMD_FLAG_NO_HOLE)
    h.zero(4096, 12288, nbd.CMD_FLAG_FUA)
    assert h.pread(8192, 8192) == bytes(8192)
    h.trim(65536, 0)
    h.cache(65536, 0)
    h.flush()
    if structured:
        runs = []
        h.block_status(size, 0, lambda name, offset, entries, err: runs.append((name, entries)))
        assert runs[0][0] == "base:allocation"
        assert sum(runs[0][1][0::2]) == size
        one = []
        h.block_status(4096, 0, lambda name, offset, entries, err: one.append(entries), nbd.CMD_FLAG_REQ_ONE)
        assert one[0][0] <= 4096 and len(one[0]) == 2


def bad_commands(h):
    size = h.get_size()
    h.set_strict_mode(0)
    fails(errno.EINVAL, h.pread, 512, size)
    fails(errno.EINVAL, h.pread, 1024, size - 512)
    fails(errno.EINVAL, h.pread, 100, 0)
    fails(errno.EINVAL, h.pread, 512, 7)
    fails(errno.ENOSPC, h.pwrite, bytes(1024), size - 512)
    fails(errno.ENOSPC, h.zero, 1024, size - 512)
    fails(errno.EINVAL, h.trim, 1024, size - 512)
    fails(errno.EINVAL, h.pwrite, bytes(512), 0, nbd.CMD_FLAG_REQ_ONE)
    fails(errno.EINVAL, h.zero, 512, 0, 0x100)
    fails(errno.EINVAL, h.flush, nbd.CMD_FLAG_NO_HOLE)
    fails(errno.EINVAL, h.cache, 512, size)
    h.pwrite(bytes(512), 0)


for structured, extended in ((False, False), (True, False), (True, True)):
    h = connect(structured, extended)
    assert h.get_structured_replies_negotiated() == structured
    commands(h, structured)
    bad_commands(h)
    h.shutdown()

h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
names = []
h.opt_list(lambda name, description: names.append(name))
assert "disk" in names, names
found = []
h.opt_list_meta_context(lambda name: found.append(name))
assert found == ["base:allocation"], found
h.opt_info()
assert h.get_size() == 16 * 1024 * 1024
h.opt_abort()
print("all good")
