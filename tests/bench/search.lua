-- wrk's script: sends the bodies of a file in turn, and prints what it measured as one JSON line.
-- usage: wrk … -s search.lua URL -- BODIES PATH     (BODIES: one JSON body a line)

local requests, turn = {}, 0

function init(args)
  for body in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("POST", args[2], { ["Content-Type"] = "application/json" }, body)
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "failures": %d, "broken": %d, "seconds": %.4f, "per_s": %.2f, "p50_ms": %.4f, "p99_ms": %.4f}\n',
    summary.requests, e.status, e.connect + e.read + e.write + e.timeout, summary.duration / 1e6,
    summary.requests / (summary.duration / 1e6), latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
