-- The log in Redis: a stream of entries, a hash with the log's state, the idempotency keys, and the revocations.
-- Redis executes each call atomically, but does not roll back a call that fails midway. Entries added by such a call are
-- not counted in the state, so readers notice that the numbers, or the log, do not match.
--
-- The parts of stream ids, milliseconds and sequence, are numbers of up to 64 bits. Lua counts exactly only to 2^53, so
-- they are strings of decimal digits here, without leading zeros.
--
-- KEYS: the stream; the state; the idempotency keys by age (a sorted set); the receipt of each key (a hash); the
-- revocations (a hash).
-- ARGV: a verb, a name in case a new log has to be created, and the verb's arguments.

local stream, meta, ages, receipts, revocations = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local verb, new_name = ARGV[1], ARGV[2]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function text(number) return string.format('%.0f', number) end

local now_ms = text(now)
local last_number = '18446744073709551615'

local function is_less(a, b)
  if #a ~= #b then return #a < #b end
  return a < b
end

local function plus(a, number)
  if #a < 15 then return text(a + number) end
  local low = text(string.sub(a, -14) + number)
  local high = string.sub(a, 1, -15)
  if #low > 14 then high, low = plus(high, tonumber(string.sub(low, 1, -15))), string.sub(low, -14) end
  return high .. string.rep('0', 14 - #low) .. low
end

local function id(ms, seq) return ms .. '-' .. seq end

local function is_before(ms, seq, other_ms, other_seq)
  return is_less(ms, other_ms) or (ms == other_ms and is_less(seq, other_seq))
end

-- The state of the log: it has had `n` entries, the newest at (ms, seq), and began at (born_ms, born_seq).
local state = redis.call('HMGET', meta, 'log', 'n', 'ms', 'seq', 'born_ms', 'born_seq')
local log, n, ms, seq, born_ms, born_seq = state[1], tonumber(state[2]), state[3], state[4], state[5], state[6]

local function begin_log()
  log, n, born_ms, born_seq = new_name, 0, ms, seq
  redis.call('DEL', ages, receipts)
  redis.call('HSET', meta, 'log', log, 'n', 0, 'ms', ms, 'seq', seq, 'born_ms', born_ms, 'born_seq', born_seq)
end

if not (log and n and ms and seq and born_ms and born_seq) or redis.call('EXISTS', stream) == 0 then
  -- This is the first call ever, or the log has been lost. The new name shows readers that it is another log.
  if not ms or is_less(ms, now_ms) then ms = now_ms end
  seq = '0'
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
  return is_before(first_ms, first_seq, known_ms, known_seq)
end

-- Runs every other command that the verbs below need, without effect, so that a missing permission raises here.
-- Returns false if nothing can be added because the stream's last id is the highest there is.
local function check_writable()
  redis.call('HSET', meta, 'checked', now_ms)
  local added = redis.pcall('XADD', stream, id(born_ms, born_seq), 'n', '0')
  if string.find(added.err, 'exhausted', 1, true) then return false end
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
  redis.call('HGET', revocations, '')
  redis.call('HLEN', revocations)
  redis.call('HSCAN', revocations, '0', 'COUNT', 1)
  redis.call('HDEL', revocations, '')
  return true
end

-- Every verb returns a list that begins with the time and the log's name, in one string.
local function head() return now_ms .. ' ' .. log end

-- Moves on to the next position, which `left` consecutive ones can follow. Returns false if there is none.
local function advance(left)
  if is_less(ms, now_ms) then
    ms, seq = now_ms, '0'
  elseif #seq < 19 or not is_less(last_number, plus(seq, left)) then
    seq = plus(seq, 1)
  elseif ms ~= last_number then
    ms, seq = plus(ms, 1), '0'
  else
    return false
  end
  return true
end

local function continue_after_foreign_entries()
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then ms, seq = string.match(info[i + 1], '(%d+)-(%d+)') end
  end
end

-- Adds an event, with which `left` events of the request are not stored yet. Returns false if the log is full, which can
-- only happen to the first of them.
local function store(event, left)
  if not advance(left) then return false end
  local added = redis.pcall('XADD', stream, id(ms, seq), 'n', text(n + 1), 'log', log, 'event', event)
  if type(added) == 'table' then
    -- Something else may have added an entry with a later id. If so, continue after it.
    if string.find(added.err, 'equal or smaller', 1, true) or string.find(added.err, 'exhausted', 1, true) then
      continue_after_foreign_entries()
      if not advance(left) then return false end
    end
    redis.call('XADD', stream, id(ms, seq), 'n', text(n + 1), 'log', log, 'event', event)
  end
  n = n + 1
  return true
end

-- Records what `store` has added, and trims the stream.
local function record(max_events)
  redis.call('HSET', meta, 'n', text(n), 'ms', ms, 'seq', seq)
  redis.call('XTRIM', stream, 'MAXLEN', '~', max_events)
end

-- Returns the functions that concern the revocations. They are made only in the calls that need them: making them takes
-- 2 us, a tenth of what it takes to append an event.
local function table_verbs()
  local verbs = {}

  -- Returns the position of the last entry that took revocations back; '0', '0' if there has been none.
  function verbs.last_take_back()
    local at = redis.call('HMGET', meta, 'back_ms', 'back_seq')
    return at[1] or '0', at[2] or '0'
  end

  -- The value of a revocation is 'BEFORE END REST': two decimal numbers of seconds, or '-' for none, and what only
  -- nodes read. The numbers are kept as they were written, so that no digit is lost.
  local function parts_of(value)
    return string.match(value or '', '^([%d.e+-]+) ([%d.e+-]+) (.*)$')
  end

  local function later(a, b)
    if (tonumber(a) or math.huge) >= (tonumber(b) or math.huge) then return a end
    return b
  end

  local function has_run_out(value, margin)
    local _, ending = parts_of(value)
    return ending and (tonumber(ending) or math.huge) < now / 1000 - margin
  end

  -- Deletes those of the next 2,000 revocations or so that have run out, and remembers how far it has looked.
  function verbs.expire(margin)
    local cursor = redis.call('HGET', meta, 'swept')
    local page = redis.call('HSCAN', revocations, cursor or '0', 'COUNT', 2000)
    for i = 1, #page[2], 2 do
      if has_run_out(page[2][i + 1], margin) then redis.call('HDEL', revocations, page[2][i]) end
    end
    if page[1] ~= cursor then redis.call('HSET', meta, 'swept', page[1]) end
  end

  -- Enters a revocation, or extends the one in its field by the later times. Returns false if that changes nothing.
  local function enter(field, value)
    local before, ending, rest = parts_of(value)
    local known = redis.call('HGET', revocations, field)
    local known_before, known_ending = parts_of(known)
    if known_before then value = later(known_before, before) .. ' ' .. later(known_ending, ending) .. ' ' .. rest end
    if value == known then return false end
    redis.call('HSET', revocations, field, value)
    return true
  end

  -- revoke MAX_EVENTS MAX_REVOCATIONS ENTRY, followed by the field and the value of each revocation: enters them and
  -- adds the entry. Returns its position ('ms seq'), or 'table' or 'full' if the revocations or the log have no room.
  function verbs.revoke()
    local is_new, added = {}, 0
    for i = 6, #ARGV, 2 do
      local field = ARGV[i]
      if not is_new[field] and not redis.call('HGET', revocations, field) then
        is_new[field], added = true, added + 1
      end
    end
    if added > 0 and redis.call('HLEN', revocations) + added > tonumber(ARGV[4]) then return 'table' end
    if not store(ARGV[5], 1) then return 'full' end
    for i = 6, #ARGV, 2 do enter(ARGV[i], ARGV[i + 1]) end
    record(ARGV[3])
    return ms .. ' ' .. seq
  end

  -- take-back MAX_EVENTS ENTRY, followed by fields: deletes these revocations and adds the entry. Returns its position,
  -- or 'full'.
  verbs['take-back'] = function()
    if not store(ARGV[4], 1) then return 'full' end
    for i = 5, #ARGV do redis.call('HDEL', revocations, ARGV[i]) end
    redis.call('HSET', meta, 'back_ms', ms, 'back_seq', seq)
    record(ARGV[3])
    return ms .. ' ' .. seq
  end

  -- restore MAX_EVENTS MARGIN LOG MS SEQ ENTRY, followed by the field and the value of each revocation: puts back what
  -- the table lacks, except what has run out, and adds the entry if there was any. A node that has not read the log up
  -- to the last entry that took something back might put that back, too. Returns 'behind' to it, otherwise how many
  -- were put back.
  function verbs.restore()
    if log ~= ARGV[5] or is_before(ARGV[6], ARGV[7], verbs.last_take_back()) then return 'behind' end
    local changed = 0
    for i = 9, #ARGV, 2 do
      if not has_run_out(ARGV[i + 1], tonumber(ARGV[4])) and enter(ARGV[i], ARGV[i + 1]) then changed = changed + 1 end
    end
    if changed > 0 and store(ARGV[8], 1) then record(ARGV[3]) end
    return changed
  end

  return verbs
end

if verb == 'revoke' or verb == 'take-back' or verb == 'restore' then
  local reply = table_verbs()[verb]()
  return {head(), reply}
end

-- state KNOWN_LOG KNOWN_MS KNOWN_SEQ IS_WRITER: returns the state of the log. If the log has lost the known position it
-- gets a new name first. A writer's permissions are checked, and the reply to it is 'full' if nothing can be added.
if verb == 'state' then
  if log == ARGV[3] and has_lost(ARGV[4], ARGV[5]) then begin_log() end
  if ARGV[6] == '1' and not check_writable() then return {head(), 'full'} end
  return {head(), n, ms, seq, born_ms, born_seq, table_verbs().last_take_back()}
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

-- tidy WINDOW_MS MAX_KEYS MAX_AGE_MS MARGIN: deletes keys and entries that are too old, and revocations that ran out
-- more than MARGIN seconds ago. Returns the number of revocations.
if verb == 'tidy' then
  for _ = 1, 20 do if not expire_keys() then break end end
  redis.call('XTRIM', stream, 'MINID', '~', text(math.max(0, now - ARGV[5])))
  table_verbs().expire(tonumber(ARGV[6]))
  return {head(), redis.call('HLEN', revocations)}
end

-- append WINDOW_MS MAX_KEYS MAX_EVENTS REQUESTS, followed for each request by its number of publications, and for each
-- publication by its key or an empty string, the hash of its body, its number of events, and the events.
-- Returns a reply to each request: for each publication its first position and number of
-- events ('ms seq count'), one after the other. Nothing of a request was stored if the reply is 'conflict', because a
-- key was used with another body, or 'full', because the log has no room for it.
local at = 6

local function next_argument()
  at = at + 1
  return ARGV[at]
end

local function find_receipt(key)
  local age = redis.call('ZSCORE', ages, key)
  if not age or tonumber(age) < now - window then return nil end
  local body, stored = string.match(redis.call('HGET', receipts, key) or '', '^(%S+) (%d+ %d+ %d+)$')
  return body and {body = body, stored = stored}
end

-- Skips a request. Returns true if one of its keys was used with another body, where the request begins, and its number
-- of events.
local function has_conflict(publications)
  local known, start, found, events = {}, at, false, 0
  for _ = 1, publications do
    local key, body, count = next_argument(), next_argument(), tonumber(next_argument())
    at, events = at + count, events + count
    if key ~= '' then
      known[key] = known[key] or find_receipt(key) or {body = body}
      found = found or known[key].body ~= body
    end
  end
  return found, start, events
end

-- Returns the first position and number of events of a publication, or nil if the log is full.
local function publish(key, body, count, left)
  local known = key ~= '' and find_receipt(key)
  if known then
    at = at + count
    return known.stored
  end
  if not store(next_argument(), left) then return nil end
  local stored = ms .. ' ' .. seq .. ' ' .. count
  for i = 1, count - 1 do store(next_argument(), left - i) end
  if key ~= '' then
    redis.call('ZADD', ages, now_ms, key)
    redis.call('HSET', receipts, key, body .. ' ' .. stored)
  end
  return stored
end

local function reply_to_request()
  local publications = tonumber(next_argument())
  local found, start, left = has_conflict(publications)
  if found then return 'conflict' end
  local finish = at
  at = start
  local reply = {}
  for i = 1, publications do
    local key, body, count = next_argument(), next_argument(), tonumber(next_argument())
    reply[i] = publish(key, body, count, left)
    if not reply[i] then
      at = finish
      return 'full'
    end
    left = left - count
  end
  return table.concat(reply, ' ')
end

local before = n
local replies = {head()}
for request = 1, tonumber(ARGV[6]) do replies[request + 1] = reply_to_request() end
if n > before then
  record(ARGV[5])
  while redis.call('ZCARD', ages) > max_keys and expire_keys() do end
end
return replies
