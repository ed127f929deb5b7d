-- What wrk sends and says. Arguments: file with the request's head, file with its tail, first number, requests (0: no
-- bound). Everything but the number is read once; a request is one concatenation of three strings.

local ffi = require("ffi")
ffi.cdef("int kill(int pid, int signal); int getpid(void);")

local head, tail, number, last

local function content(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

function init(args)
  head, tail = content(args[1]), content(args[2])
  number = tonumber(args[3])
  local requests = tonumber(args[4])
  last = requests > 0 and number + requests or math.huge
end

function request()
  if number == last then
    -- SIGINT ends wrk's waiting, and it reports what was done until then.
    ffi.C.kill(ffi.C.getpid(), 2)
  end
  number = number + 1
  return head .. string.format("%010d", number) .. tail
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'figures {"duration_s": %.6f, "requests": %d, "bytes": %d, "connect": %d, "read": %d, "write": %d, ' ..
    '"status": %d, "timeout": %d, "p50_ms": %.3f, "p90_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f, "mean_ms": %.3f}\n',
    summary.duration / 1e6, summary.requests, summary.bytes, errors.connect, errors.read, errors.write,
    errors.status, errors.timeout, latency:percentile(50) / 1e3, latency:percentile(90) / 1e3,
    latency:percentile(99) / 1e3, latency.max / 1e3, latency.mean / 1e3))
end
