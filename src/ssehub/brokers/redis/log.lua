-- The log in Redis: a stream of entries, a hash with the log's state, and the idempotency keys.
-- Redis executes each call atomically, but does not roll back a call that fails midway. Entries added by such a call are
-- not counted in the state, so readers notice that the numbers, or the log, do not match.
--
-- KEYS: the stream; the state; the idempotency keys by age (a sorted set); the receipt of each key (a hash).
-- ARGV: a verb, a name in case a new log has to be created, and the verb's arguments.

local stream, meta, ages, receipts = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local verb, new_name = ARGV[1], ARGV[2]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function text(number) return string.format('%.0f', number) end

local function id(ms, seq) return text(ms) .. '-' .. text(seq) end

local function is_before(ms, seq, other_ms, other_seq)
  return ms < other_ms or (ms == other_ms and seq < other_seq)
end

-- The state of the log: it has had `n` entries, the newest at (ms, seq), and began at (born_ms, born_seq).
local state = redis.call('HMGET', meta, 'log', 'n', 'ms', 'seq', 'born_ms', 'born_seq')
local log, n, ms, seq = state[1], tonumber(state[2]), tonumber(state[3]), tonumber(state[4])
local born_ms, born_seq = tonumber(state[5]), tonumber(state[6])

local function begin_log()
  log, n, born_ms, born_seq = new_name, 0, ms, seq
  redis.call('DEL', ages, receipts)
  redis.call('HSET', meta, 'log', log, 'n', 0, 'ms', text(ms), 'seq', text(seq),
    'born_ms', text(born_ms), 'born_seq', text(born_seq))
end

if not (log and n and ms and seq and born_ms and born_seq) or redis.call('EXISTS', stream) == 0 then
  -- This is the first call ever, or the log has been lost. The new name shows readers that it is another log.
  ms, seq = math.max(now, ms or 0), 0
  if redis.call('TYPE', stream).ok == 'stream' then redis.call('DEL', stream) end
  redis.call('XADD', stream, 'MAXLEN', 0, id(ms, seq), 'log', new_name)
  begin_log()
end

-- Returns true if the log has lost entries up to (known_ms, known_seq), which some node knows: a replica that lagged
-- was promoted, or a restart restored less than there was.
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

-- Runs every other command that `append` and `tidy` need, without effect, so that a missing permission raises here.
local function check_permissions()
  redis.call('HSET', meta, 'checked', text(now))
  local added = redis.pcall('XADD', stream, id(born_ms, born_seq), 'n', '0')
  if not string.find(added.err, 'equal or smaller', 1, true) then redis.call('XADD', stream, '0-0', 'n', '0') end
  redis.call('ZADD', ages, 'XX', '0', '')
  redis.call('ZREM', ages, '')
  redis.call('HDEL', receipts, '')
  for _, command in ipairs({'ZCARD', 'TYPE'}) do redis.call(command, ages) end
  redis.call('ZRANGE', ages, 0, 0)
  redis.call('ZRANGEBYSCORE', ages, '-inf', '-inf')
  redis.call('ZSCORE', ages, '')
  redis.call('HGET', receipts, '')
  redis.call('XINFO', 'STREAM', stream)
  redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)
end

-- state KNOWN_LOG KNOWN_MS KNOWN_SEQ IS_WRITER: returns the state of the log. If the log has lost the known position it
-- gets a new name first; a writer's permissions are checked.
if verb == 'state' then
  if log == ARGV[3] and has_lost(tonumber(ARGV[4]), tonumber(ARGV[5])) then begin_log() end
  if ARGV[6] == '1' then check_permissions() end
  return {log, n, ms, seq, born_ms, born_seq}
end

local window, max_keys = tonumber(ARGV[3]), tonumber(ARGV[4])

-- Deletes up to 1,000 idempotency keys that are too old or too many. Returns true if there were any.
local function expire_keys()
  local old = redis.call('ZRANGEBYSCORE', ages, '-inf', '(' .. text(now - window), 'LIMIT', 0, 1000)
  local over = math.min(redis.call('ZCARD', ages) - max_keys, 1000)
  if over > #old then old = redis.call('ZRANGE', ages, 0, over - 1) end
  if #old == 0 then return false end
  redis.call('ZREM', ages, unpack(old))
  redis.call('HDEL', receipts, unpack(old))
  return true
end

-- tidy WINDOW_MS MAX_KEYS MAX_AGE_MS: deletes keys and entries that are too old.
if verb == 'tidy' then
  for _ = 1, 20 do if not expire_keys() then break end end
  return redis.call('XTRIM', stream, 'MINID', '~', text(math.max(0, now - ARGV[5])))
end

-- append WINDOW_MS MAX_KEYS MAX_EVENTS REQUESTS, followed for each request by its number of publications, and for each
-- publication by its key or an empty string, the hash of its body, its number of events, and the events.
-- Returns the log's name and a reply to each request: for each publication its first position and number of events
-- (ms, seq, count), one after the other, or 'conflict' if nothing was stored because a key was used with another body.
local at = 6

local function next_argument()
  at = at + 1
  return ARGV[at]
end

local function find_receipt(key)
  local age = redis.call('ZSCORE', ages, key)
  if not age or tonumber(age) < now - window then return nil end
  local body, first_ms, first_seq, count =
    string.match(redis.call('HGET', receipts, key) or '', '^(%S+) (%d+) (%d+) (%d+)$')
  return body and {body = body, ms = tonumber(first_ms), seq = tonumber(first_seq), count = tonumber(count)}
end

-- Skips a request. Returns true if one of its keys was used with another body, and where the request begins.
local function has_conflict(publications)
  local known, start, found = {}, at, false
  for _ = 1, publications do
    local key, body, count = next_argument(), next_argument(), next_argument()
    at = at + tonumber(count)
    if key ~= '' then
      known[key] = known[key] or find_receipt(key) or {body = body}
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
    -- Something else has added an entry with a later id: continue after it.
    local info = redis.call('XINFO', 'STREAM', stream)
    for i = 1, #info, 2 do
      if info[i] == 'last-generated-id' then ms, seq = tonumber(string.match(info[i + 1], '%d+')) + 1, 0 end
    end
  end
  redis.call('XADD', stream, id(ms, seq), 'n', text(n), 'log', log, 'event', event)
end

local function publish(key, body, count)
  local known = key ~= '' and find_receipt(key)
  if known then
    at = at + count
    return known.ms, known.seq, known.count
  end
  store(next_argument())
  local first_ms, first_seq = ms, seq
  for _ = 2, count do store(next_argument()) end
  if key ~= '' then
    redis.call('ZADD', ages, text(now), key)
    redis.call('HSET', receipts, key, string.format('%s %s %s %d', body, text(first_ms), text(first_seq), count))
  end
  return first_ms, first_seq, count
end

local before = n
local replies = {log}
for request = 1, tonumber(ARGV[6]) do
  local publications = tonumber(next_argument())
  local found, start = has_conflict(publications)
  if found then
    replies[request + 1] = 'conflict'
  else
    at = start
    local reply = {}
    for i = 1, publications do
      local key, body, events = next_argument(), next_argument(), next_argument()
      local first_ms, first_seq, count = publish(key, body, tonumber(events))
      reply[3 * i - 2], reply[3 * i - 1], reply[3 * i] = first_ms, first_seq, count
    end
    replies[request + 1] = reply
  end
end
if n > before then
  redis.call('HSET', meta, 'n', text(n), 'ms', text(ms), 'seq', text(seq))
  redis.call('XTRIM', stream, 'MAXLEN', '~', ARGV[5])
  while redis.call('ZCARD', ages) > max_keys and expire_keys() do end
end
return replies
