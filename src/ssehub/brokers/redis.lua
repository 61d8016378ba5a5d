-- The log in Redis: a stream, and beside it what the log is called and where it stands, and the idempotency keys.
-- Redis runs each call by itself, but undoes nothing when one fails in its middle: what that has stored is not in the
-- state, so who reads it sees that the count, or the log, is not what it was.
--
-- KEYS: the stream; a hash of the log's state; its idempotency keys by age; what was published with each.
-- ARGV: a verb, a name for a new log if one is needed, and what the verb takes.

local stream, meta, ages, kept = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local verb, new_name = ARGV[1], ARGV[2]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function text(number) return string.format('%.0f', number) end

local function id(ms, seq) return text(ms) .. '-' .. text(seq) end

local function is_before(ms, seq, other_ms, other_seq)
  return ms < other_ms or (ms == other_ms and seq < other_seq)
end

-- Where the log stands: `n` entries so far, the last one at (ms, seq); it was made at (born_ms, born_seq).
local state = redis.call('HMGET', meta, 'log', 'n', 'ms', 'seq', 'born_ms', 'born_seq')
local log, n, ms, seq = state[1], tonumber(state[2]), tonumber(state[3]), tonumber(state[4])
local born_ms, born_seq = tonumber(state[5]), tonumber(state[6])

local function begin_log()
  log, n, born_ms, born_seq = new_name, 0, ms, seq
  redis.call('DEL', ages, kept)
  redis.call('HSET', meta, 'log', log, 'n', 0, 'ms', text(ms), 'seq', text(seq),
    'born_ms', text(born_ms), 'born_seq', text(born_seq))
end

if not (log and n and ms and seq and born_ms and born_seq) or redis.call('EXISTS', stream) == 0 then
  -- The first call ever, or the log has been lost: whoever reads it has to see that this is another one.
  ms, seq = math.max(now, ms or 0), 0
  if redis.call('TYPE', stream).ok == 'stream' then redis.call('DEL', stream) end
  redis.call('XADD', stream, 'MAXLEN', 0, id(ms, seq), 'log', new_name)
  begin_log()
end

-- Whether this is no longer the log that somebody knew up to (known_ms, known_seq): a replica that lagged took over,
-- or a restart brought back less than there was.
local function has_lost(known_ms, known_seq)
  if is_before(ms, seq, known_ms, known_seq) then return true end
  if known_ms == born_ms and known_seq == born_seq then return false end
  local known = id(known_ms, known_seq)
  if #redis.call('XRANGE', stream, known, known) > 0 then return false end
  local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  if not first then return false end
  local first_ms, first_seq = string.match(first[1], '(%d+)-(%d+)')
  return is_before(tonumber(first_ms), tonumber(first_seq), known_ms, known_seq)
end

-- What publishing needs beyond that, without an effect: raises if it may not be done here.
local function try_all()
  redis.call('HSET', meta, 'looked', text(now))
  local added = redis.pcall('XADD', stream, id(born_ms, born_seq), 'n', '0')
  if not string.find(added.err, 'equal or smaller', 1, true) then redis.call('XADD', stream, '0-0', 'n', '0') end
  redis.call('ZADD', ages, 'XX', '0', '')
  redis.call('ZREM', ages, '')
  redis.call('HDEL', kept, '')
  for _, command in ipairs({'ZCARD', 'TYPE'}) do redis.call(command, ages) end
  redis.call('ZRANGE', ages, 0, 0)
  redis.call('ZRANGEBYSCORE', ages, '-inf', '-inf')
  redis.call('ZSCORE', ages, '')
  redis.call('HGET', kept, '')
  redis.call('XINFO', 'STREAM', stream)
  redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)
end

-- look KNOWN_LOG KNOWN_MS KNOWN_SEQ IS_WRITER: where the log stands. If it is not what it was, it gets a new name.
if verb == 'look' then
  if log == ARGV[3] and has_lost(tonumber(ARGV[4]), tonumber(ARGV[5])) then begin_log() end
  if ARGV[6] == '1' then try_all() end
  return {log, n, ms, seq, born_ms, born_seq}
end

local window, max_keys = tonumber(ARGV[3]), tonumber(ARGV[4])

-- Drops some of the keys that are too old or too many; says whether there were any.
local function forget()
  local old = redis.call('ZRANGEBYSCORE', ages, '-inf', '(' .. text(now - window), 'LIMIT', 0, 1000)
  local over = math.min(redis.call('ZCARD', ages) - max_keys, 1000)
  if over > #old then old = redis.call('ZRANGE', ages, 0, over - 1) end
  if #old == 0 then return false end
  redis.call('ZREM', ages, unpack(old))
  redis.call('HDEL', kept, unpack(old))
  return true
end

-- tidy WINDOW_MS MAX_KEYS MAX_AGE_MS: drop what is too old.
if verb == 'tidy' then
  for _ = 1, 20 do if not forget() then break end end
  return redis.call('XTRIM', stream, 'MINID', '~', text(math.max(0, now - ARGV[5])))
end

-- append WINDOW_MS MAX_KEYS MAX_EVENTS REQUESTS, then for each request: how many publications, and for each of those:
-- its key or nothing, the hash of its body, how many events, and these. Answers the log's name, then for each request
-- where its publications are, as (ms, seq, how many) one after the other, or 'conflict' when nothing of it was stored.
local at = 6

local function take()
  at = at + 1
  return ARGV[at]
end

local function find(key)
  local age = redis.call('ZSCORE', ages, key)
  if not age or tonumber(age) < now - window then return nil end
  local body, first_ms, first_seq, count =
    string.match(redis.call('HGET', kept, key) or '', '^(%S+) (%d+) (%d+) (%d+)$')
  return body and {body = body, ms = tonumber(first_ms), seq = tonumber(first_seq), count = tonumber(count)}
end

local function conflicts(publications)
  local known, start, found = {}, at, false
  for _ = 1, publications do
    local key, body, count = take(), take(), take()
    at = at + tonumber(count)
    if key ~= '' then
      known[key] = known[key] or find(key) or {body = body}
      found = found or known[key].body ~= body
    end
  end
  return found, start
end

local function store(event)
  if now > ms then ms, seq = now, 0 else seq = seq + 1 end
  n = n + 1
  local added = redis.pcall('XADD', stream, id(ms, seq), 'n', text(n), 'log', log, 'event', event)
  if type(added) ~= 'table' then return end
  if string.find(added.err, 'equal or smaller', 1, true) then
    -- Somebody else has written into the stream, with the server's own ids: go on behind that.
    local info = redis.call('XINFO', 'STREAM', stream)
    for i = 1, #info, 2 do
      if info[i] == 'last-generated-id' then ms, seq = tonumber(string.match(info[i + 1], '%d+')) + 1, 0 end
    end
  end
  redis.call('XADD', stream, id(ms, seq), 'n', text(n), 'log', log, 'event', event)
end

local function publish(key, body, count)
  local known = key ~= '' and find(key)
  if known then
    at = at + count
    return known.ms, known.seq, known.count
  end
  store(take())
  local first_ms, first_seq = ms, seq
  for _ = 2, count do store(take()) end
  if key ~= '' then
    redis.call('ZADD', ages, text(now), key)
    redis.call('HSET', kept, key, string.format('%s %s %s %d', body, text(first_ms), text(first_seq), count))
  end
  return first_ms, first_seq, count
end

local before = n
local answers = {log}
for request = 1, tonumber(ARGV[6]) do
  local publications = tonumber(take())
  local found, start = conflicts(publications)
  if found then
    answers[request + 1] = 'conflict'
  else
    at = start
    local places = {}
    for i = 1, publications do
      local key, body, events = take(), take(), take()
      local first_ms, first_seq, count = publish(key, body, tonumber(events))
      places[3 * i - 2], places[3 * i - 1], places[3 * i] = first_ms, first_seq, count
    end
    answers[request + 1] = places
  end
end
if n > before then
  redis.call('HSET', meta, 'n', text(n), 'ms', text(ms), 'seq', text(seq))
  redis.call('XTRIM', stream, 'MAXLEN', '~', ARGV[5])
  while redis.call('ZCARD', ages) > max_keys and forget() do end
end
return answers
