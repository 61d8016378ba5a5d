-- A script for wrk: sends the same POST again and again, and prints what became of it as a line of JSON.
-- A header with the value `{number}` gets another value in each request.
--
-- wrk OPTIONS -s post.lua URL -- FILE 'NAME: VALUE'...
--
-- FILE has the body; the headers follow it.

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  wrk.method = "POST"
  wrk.body = file:read("*a")
  file:close()
  for i = 2, #arguments do
    local name, value = arguments[i]:match("^([^:]+): *(.*)$")
    wrk.headers[name] = value
    if value == "{number}" then
      number_requests(name)
    end
  end
end

function number_requests(name)
  local number = 0
  request = function()
    number = number + 1
    wrk.headers[name] = string.format("%08d", number)
    return wrk.format()
  end
end

function done(summary)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.timeout + errors.status
  print(string.format('{"requests": %d, "seconds": %.6f, "failed": %d}', summary.requests, summary.duration / 1e6, failed))
end
