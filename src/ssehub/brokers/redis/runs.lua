-- The runs in Redis. Each call does several operations, one after the other. It returns their replies and, at last, the
-- totals, unless all were the most common appends. The rules are those of ssehub/runs/book.py, whose words are used.
--
-- With the prefix P = '{prefix}:', there are
--   P run:NAME          a hash: a run, its claim, and the time at which its deadline began
--   P run:NAME/LOG      a stream: its events, whose ids are their ordinals; missing if it has none
--   P runs              a sorted set of the names of all runs, all with the score 0, so that they are in order
--   P runs-of:USER      the same of the runs for this user, or, with *, for everyone
--   P run-deadlines     a sorted set: when to look at a run next, in ms; not later than its deadline
--   P run-totals        a hash: the number of runs in each state, and of bytes; an epoch, new when all was deleted; and
--                       when somebody last swept, and when somebody did so again after a long time, in ms
--   P run-tombstones    a hash: the last generation of names that are gone; P run-tombstone-ages: when they went, in ms
--   P run-leases        a sorted set: until when the claims of a node are alive, in ms
-- Keys of runs expire long after they should have been deleted, in case nobody does.
--
-- ARGV: P, the prefix of channels, the id of this Redis, new when it has started or become a primary, and how long a
-- lease lasts, in ms; then for each operation a verb, the number of its arguments, and these.

local prefix, channels, server, lease_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local totals = prefix .. 'run-totals'
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local now_ms = string.format('%.0f', now)
local inline_bytes = 32768
local total_fields = {'bytes', 'open', 'stopping', 'done', 'failed', 'stopped'}

-- Returns what went wrong as text: Redis has raised a table since version 7, and a string before.
local function error_text(raised) return type(raised) == 'table' and raised.err or tostring(raised) end

-- Adds the arguments from `first` to `last` to the stream of a log with so many events. Returns false if it has others.
local function add(stream, events, first, last)
  for at = first, last do
    local id, added = (events + 1 + at - first) .. '-0', nil
    if events == 0 and at == first then
      added = redis.pcall('XADD', stream, id, 'e', ARGV[at])
    else
      added = redis.pcall('XADD', stream, 'NOMKSTREAM', id, 'e', ARGV[at])
    end
    if type(added) ~= 'string' then return false end
  end
  return true
end

-- What is published about a run: how it is now, and the arguments from `first` to `last`, unless they are large.
local function message(kind, generation, log, state, events, bytes, ended, failure, first, last)
  local head = kind .. ' ' .. generation .. ' ' .. log .. ' ' .. state .. ' ' .. events .. ' ' .. bytes .. ' '
    .. (last - first + 1) .. ' ' .. (ended or '-') .. ' ' .. (failure and cjson.encode(failure) or '-')
  if first > last then return head end
  if first == last then
    if #ARGV[first] > inline_bytes then return head end
    return head .. '\n' .. ARGV[first]
  end
  local size = 0
  for at = first, last do size = size + #ARGV[at] end
  if size > inline_bytes then return head end
  return head .. '\n' .. table.concat(ARGV, '\n', first, last)
end

-- All bytes, if they are known, and those that quick appends have added without having counted them.
local total_bytes, added_bytes = nil, 0

local function count_bytes()
  if added_bytes > 0 then redis.call('HINCRBY', totals, 'bytes', string.format('%.0f', added_bytes)) end
  total_bytes, added_bytes = nil, 0
end

-- Does the most common append, of the connection that holds an open run: see `verbs.append` for its arguments. Returns
-- nil, and has done nothing, if it is any other.
local function append_quickly(at)
  if ARGV[at + 7] ~= '0' or ARGV[at + 8] ~= '' then return nil end
  local name, generation, offset = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local key = prefix .. 'run:' .. name
  local run = redis.call('HMGET', key, 'state', 'generation', 'log', 'events', 'bytes', 'producer', 'connection', 'held')
  if run[1] ~= 'open' or run[6] ~= ARGV[at + 4] or run[7] ~= ARGV[at + 5] or run[8] ~= ARGV[at + 6] then return nil end
  if generation ~= '' and generation ~= run[2] or offset ~= '' and offset ~= run[4] then return nil end
  local count = tonumber(ARGV[at + 15])
  if count == 0 then
    redis.call('HSET', key, 'since', now_ms)
    return run[2] .. ' ' .. run[4] .. ' open'
  end
  local size, events = ARGV[at + 12], tonumber(run[4])
  local bytes = string.format('%.0f', run[5] + size)
  if events == 0 or tonumber(bytes) > tonumber(ARGV[at + 10]) then return nil end
  if not total_bytes then total_bytes = tonumber(redis.call('HGET', totals, 'bytes') or 0) end
  if total_bytes + size > tonumber(ARGV[at + 11]) or not add(key .. '/' .. run[3], events, at + 16, at + 15 + count) then
    return nil
  end
  total_bytes, added_bytes = total_bytes + size, added_bytes + size
  events = string.format('%.0f', events + count)
  redis.call('HSET', key, 'events', events, 'bytes', bytes, 'since', now_ms)
  redis.call('PUBLISH', channels .. name,
    message('+', run[2], run[3], 'open', events, bytes, nil, nil, at + 16, at + 15 + count))
  return run[2] .. ' ' .. events .. ' open'
end

-- Returns the other operations. They are made only in the calls that need them.
local function make_verbs()
  local verbs = {}
  local index, deadlines, leases = prefix .. 'runs', prefix .. 'run-deadlines', prefix .. 'run-leases'
  local tombstones, tombstone_ages = prefix .. 'run-tombstones', prefix .. 'run-tombstone-ages'
  local spare_ms, away_ms = 86400000, 5000

  -- The first nine are the record that nodes are sent.
  local fields = {
    'options', 'generation', 'log', 'state', 'error', 'events', 'bytes', 'created', 'ended', 'producer', 'connection',
    'held', 'since', 'idle', 'keep', 'stop', 'key', 'body', 'creator', 'finisher',
    'server', 'size'
  }
  local record_fields = 9

  local function key_of(name) return prefix .. 'run:' .. name end
  local function stream_of(run) return key_of(run.name) .. '/' .. run.log end
  local function text(number) return string.format('%.0f', number) end

  local function find(name)
    local values = redis.call('HMGET', key_of(name), unpack(fields))
    if not (values[1] and values[4]) then return nil end
    local run = {name = name}
    for i, field in ipairs(fields) do run[field] = values[i] end
    run.events, run.bytes, run.size = tonumber(run.events), tonumber(run.bytes), tonumber(run.size)
    return run
  end

  local function record_of(run)
    local record = {}
    for i = 1, record_fields do
      local value = run[fields[i]]
      record[i] = type(value) == 'number' and text(value) or value
    end
    return record
  end

  -- A reply: what happened, the run as it is now, and whether it has been created or has ended.
  local function reply(status, run, is_transition, ...)
    return {status, run and record_of(run) or false, is_transition and 1 or 0, ...}
  end
  local function conflict(run, reason, is_transition) return reply('conflict', run, is_transition, reason) end

  local function has_ended(run) return run.state ~= 'open' and run.state ~= 'stopping' end

  local function publish(kind, run, first, last)
    redis.call('PUBLISH', channels .. run.name, message(kind, run.generation, run.log, run.state, text(run.events),
      text(run.bytes), run.ended, run.error, first or 1, last or 0))
  end

  -- Claims

  local function renew(node) redis.call('ZADD', leases, text(now + lease_ms), node) end

  -- Notices if nobody has swept for some time: all nodes were away from Redis, or there were none. The claims that were
  -- alive then are alive again, and for `away_ms` nothing is due, so that producers can show signs of life.
  local function notice_absence()
    local swept = tonumber(redis.call('HGET', totals, 'swept') or now)
    if now - swept <= away_ms then return end
    for _, node in ipairs(redis.call('ZRANGEBYSCORE', leases, text(swept), '+inf')) do renew(node) end
    redis.call('HSET', totals, 'swept', now_ms, 'resumed', now_ms)
  end

  local function is_held(run)
    if not run.held then return false end
    notice_absence()
    local lease = redis.call('ZSCORE', leases, run.held)
    return lease and tonumber(lease) > now
  end

  local function is_held_by_another(run, producer)
    return producer ~= '' and run.producer and run.producer ~= producer and is_held(run)
  end

  -- Nobody is told by `publish` who appends. A connection that is passed over may be at another node, and silent.
  local function claim(run, producer, connection, node)
    if run.held and run.connection ~= connection then redis.call('PUBLISH', channels .. run.name, '!' .. connection) end
    run.producer, run.connection, run.held = producer, connection, node
    redis.call('HSET', key_of(run.name), 'producer', producer, 'connection', connection, 'held', node)
    renew(node)
  end

  -- Returns the reason why the step of a connection is refused, or nil; and true if it has to claim the run.
  local function check_claim(run, producer, connection, node, is_first)
    if run.producer == producer and run.connection == connection then return nil, run.held ~= node end
    if is_first then
      if is_held_by_another(run, producer) then return 'producer' end
      return nil, true
    end
    if not run.producer then return 'stale' end
    return run.producer == producer and 'superseded' or 'producer'
  end

  -- Deadlines

  local function deadline_of(run)
    if run.state == 'open' then return run.since + run.idle end
    return run.since + (run.state == 'stopping' and run.stop or run.keep)
  end

  -- Looks at the run again at its deadline, and lets its keys expire long after.
  local function watch(run)
    redis.call('ZADD', deadlines, text(deadline_of(run)), run.name)
    local longest = text(run.idle + run.stop + run.keep + spare_ms)
    redis.call('PEXPIRE', key_of(run.name), longest)
    redis.call('PEXPIRE', stream_of(run), longest)
  end

  -- Changes

  local function count(run, number)
    redis.call('HINCRBY', totals, run.state, number)
    redis.call('HINCRBY', totals, 'bytes', text(number * (run.bytes + run.size)))
  end

  local function users_of(run) return cjson.decode(run.options).users end

  local function leave(run)
    count(run, -1)
    for _, user in ipairs(users_of(run)) do redis.call('ZREM', prefix .. 'runs-of:' .. user, run.name) end
  end

  local function bury(name, generation)
    redis.call('HSET', tombstones, name, generation)
    redis.call('ZADD', tombstone_ages, now_ms, name)
  end

  local function dig_up(name)
    redis.call('HDEL', tombstones, name)
    redis.call('ZREM', tombstone_ages, name)
  end

  -- Forgets everything about a run except for its generation.
  local function remove(run)
    leave(run)
    redis.call('UNLINK', key_of(run.name), stream_of(run))  -- a stream may have 8 MiB: DEL takes up to a millisecond
    redis.call('ZREM', index, run.name)
    redis.call('ZREM', deadlines, run.name)
    bury(run.name, run.generation)
    publish('-', run)
  end

  local function enter_state(run, state)
    redis.call('HINCRBY', totals, run.state, -1)
    redis.call('HINCRBY', totals, state, 1)
    run.state, run.since = state, now_ms
    redis.call('HSET', key_of(run.name), 'state', state, 'since', now_ms)
    watch(run)
  end

  -- Ends a run. `failure` is false, or a text; nothing is published.
  local function finish(run, state, failure, finisher)
    if run.state == 'stopping' and state ~= 'failed' then state, failure = 'stopped', false end
    run.error, run.ended, run.finisher = failure, now_ms, finisher or false
    local key = key_of(run.name)
    redis.call('HDEL', key, 'error', 'finisher', 'producer', 'connection', 'held')
    redis.call('HSET', key, 'ended', now_ms)
    if failure then redis.call('HSET', key, 'error', failure) end
    if finisher then redis.call('HSET', key, 'finisher', finisher) end
    run.producer, run.connection, run.held = false, false, false
    enter_state(run, state)
  end

  -- Continues an open run, of which a part has been lost, under another log, so that no watcher takes what follows for
  -- what was lost. It keeps the events that it has. Returns false if it has none of those that were counted.
  local function renew_log(run, log)
    local old = stream_of(run)
    if run.events > 0 and redis.call('XLEN', old) ~= run.events then return false end
    run.log = log
    if run.events > 0 then redis.call('RENAME', old, stream_of(run)) end
    redis.call('HSET', key_of(run.name), 'log', log, 'server', server)
    publish('+', run)
    return true
  end

  local function end_reason(run)
    if run.error == 'too-large' then return 'too-large' end
    return run.state == 'stopped' and 'stopped' or 'ended'
  end

  -- Forgets a run whose events have been lost although it is there.
  local function lose(run)
    local was_open = not has_ended(run)
    if was_open then finish(run, 'failed', 'deleted') end
    remove(run)
    return reply('unknown', run, was_open)
  end

  -- Returns '-' as false, and '+text' as the text.
  local function error_in(argument) return argument ~= '-' and string.sub(argument, 2) end

  -- Operations. `at` is where the verb's number of arguments is.

  -- create NAME GENERATION MODE OPTIONS SIZE IDLE_MS KEEP_MS STOP_MS LOG KEY BODY PRODUCER CONNECTION NODE MAX_RUNS
  -- MAX_BYTES. GENERATION may be empty, and is 0 if there must be no run. SIZE is that of the options.
  function verbs.create(at)
    local name, generation, mode, options, size, idle, keep, stop, log, key, body, producer, connection, node, max_runs,
      max_bytes = unpack(ARGV, at + 1, at + 16)
    size = tonumber(size)
    local old = find(name)
    if generation ~= '' and generation ~= (old and old.generation or '0') then
      return old and conflict(old, 'stale') or reply('unknown')
    end
    if not old then
      if redis.call('ZCARD', index) >= tonumber(max_runs) then return reply('runs') end
    else
      local is_same = key ~= '' and old.key == key
      if is_same and old.body ~= body then return reply('key') end
      if is_same or mode == 'join' and not has_ended(old) then
        if is_held_by_another(old, producer) then
          if not is_same then return conflict(old, 'producer') end
        elseif producer ~= '' and old.state == 'open' then
          claim(old, producer, connection, node)
        end
        return reply('known', old)
      end
      if mode == 'join' and producer ~= '' and old.creator == producer then return reply('known', old) end
      if mode == 'new' and not has_ended(old) then return conflict(old, 'open') end
    end
    local is_kept, growth = old and mode == 'takeover', size
    if is_kept and old.events > 0 and redis.call('XLEN', stream_of(old)) ~= old.events then is_kept = false end
    if old then growth = growth - old.size - (is_kept and 0 or old.bytes) end
    if growth > 0 and (redis.call('HGET', totals, 'bytes') or 0) + growth > tonumber(max_bytes) then
      return reply('bytes')
    end
    local run = {
      name = name, options = options, log = log, state = 'open', error = false, events = 0, bytes = 0, created = now_ms,
      ended = false, since = now_ms, idle = idle, keep = keep, stop = stop, size = size
    }
    if old then
      run.generation = text(old.generation + 1)
      leave(old)
      if is_kept then run.events, run.bytes = old.events, old.bytes end
      if is_kept and not has_ended(old) then
        run.log = old.log
      elseif is_kept and old.events > 0 then
        redis.call('RENAME', stream_of(old), stream_of(run))
      else
        redis.call('UNLINK', stream_of(old))
      end
      redis.call('DEL', key_of(name))
    else
      run.generation = text((redis.call('HGET', tombstones, name) or 0) + 1)
    end
    dig_up(name)
    redis.call('HSET', key_of(name), 'options', options, 'generation', run.generation, 'log', run.log, 'state', 'open',
      'events', text(run.events), 'bytes', text(run.bytes), 'created', now_ms, 'since', now_ms, 'idle', idle,
      'keep', keep, 'stop', stop, 'server', server, 'size', size)
    if key ~= '' then redis.call('HSET', key_of(name), 'key', key, 'body', body) end
    if producer ~= '' then
      redis.call('HSET', key_of(name), 'creator', producer)
      claim(run, producer, connection, node)
    end
    redis.call('ZADD', index, 0, name)
    for _, user in ipairs(users_of(run)) do redis.call('ZADD', prefix .. 'runs-of:' .. user, 0, name) end
    count(run, 1)
    watch(run)
    publish('+', run)
    return reply('ok', run, true)
  end

  local function append_late(run, producer, connection, node, is_first, offset, outcome, failure, number)
    local is_known = number == 0 or offset and offset + number <= run.events
    if run.state == 'stopping' then
      if outcome == '' or not is_known then return conflict(run, 'stopped') end
      local reason = check_claim(run, producer, connection, node, is_first)
      if reason then return conflict(run, reason) end
      finish(run, outcome, failure, producer)
      publish('+', run)
      return reply('ok', run, true)
    end
    is_known = is_known and (not offset or offset <= run.events)
    if run.error == 'too-large' or producer ~= run.finisher or not is_known then return conflict(run, end_reason(run)) end
    if outcome ~= '' and outcome ~= run.state and run.state ~= 'stopped' then return conflict(run, end_reason(run)) end
    return reply('ok', run)
  end

  -- append NAME GENERATION OFFSET PRODUCER CONNECTION NODE IS_FIRST STATE ERROR RUN_BYTES MAX_BYTES SIZE SIZES LOG
  -- COUNT, followed by the events. GENERATION and OFFSET may be empty; so is STATE, unless this ends the run. SIZES are
  -- those of the events, and SIZE is their sum. LOG is a name in case a part of the run has been lost: its producer
  -- knows of more events than there are.
  function verbs.append(at)
    local name, generation, offset, producer, connection, node, is_first, outcome, failure, run_bytes, max_bytes, size,
      sizes, log, number = unpack(ARGV, at + 1, at + 15)
    local first, last = at + 16, at + 15 + number
    number = tonumber(number)
    offset, failure, is_first, size = tonumber(offset), error_in(failure), is_first == '1', tonumber(size)
    local run = find(name)
    if not run then return reply('unknown') end
    if generation ~= '' and generation ~= run.generation then return conflict(run, 'stale') end
    if run.state ~= 'open' then
      return append_late(run, producer, connection, node, is_first, offset, outcome, failure, number)
    end
    local reason, is_claimed = check_claim(run, producer, connection, node, is_first)
    if reason then return conflict(run, reason) end
    if offset and offset > run.events then
      -- Without a loss its producer is wrong. Redis loses nothing, or all of a run, unless it has got another id.
      if run.server ~= server and not renew_log(run, log) then return lose(run) end
      return conflict(run, 'offset')
    end
    if offset and offset < run.events and number > 0 then
      local skipped = math.min(run.events - offset, number)
      first, number = first + skipped, number - skipped
      for each in string.gmatch(sizes, '%d+') do
        if skipped == 0 then break end
        size, skipped = size - each, skipped - 1
      end
    end
    if number > 0 then
      if run.bytes + size > tonumber(run_bytes) then
        finish(run, 'failed', 'too-large')
        publish('+', run)
        return conflict(run, 'too-large', true)
      end
      if redis.call('HINCRBY', totals, 'bytes', text(size)) > tonumber(max_bytes) then
        redis.call('HINCRBY', totals, 'bytes', text(-size))
        return reply('bytes')
      end
      if not add(stream_of(run), run.events, first, last) then
        redis.call('HINCRBY', totals, 'bytes', text(-size))
        return lose(run)
      end
      run.events, run.bytes = run.events + number, run.bytes + size
      redis.call('HSET', key_of(name), 'events', text(run.events), 'bytes', text(run.bytes))
    end
    run.since = now_ms
    redis.call('HSET', key_of(name), 'since', now_ms)
    if number > 0 and run.events == number then watch(run) end
    if is_claimed then claim(run, producer, connection, node) end
    if outcome ~= '' then finish(run, outcome, failure, producer) end
    if number > 0 or outcome ~= '' then publish('+', run, first, last) end
    return reply('ok', run, outcome ~= '')
  end

  -- release NAME PRODUCER CONNECTION
  function verbs.release(at)
    local run = find(ARGV[at + 1])
    if not run or not run.held or run.producer ~= ARGV[at + 2] or run.connection ~= ARGV[at + 3] then
      return reply('ok')
    end
    if run.state ~= 'stopping' then
      redis.call('HDEL', key_of(run.name), 'held')
      return reply('ok')
    end
    finish(run, 'stopped', false)
    publish('+', run)
    return reply('ok', run, true)
  end

  -- Returns a run, or nil and the reply if it is refused.
  local function require_run(name, generation)
    local run = find(name)
    if not run then return nil, reply('unknown') end
    if generation ~= '' and generation ~= run.generation then return nil, conflict(run, 'stale') end
    return run
  end

  -- finish NAME GENERATION STATE ERROR
  function verbs.finish(at)
    local run, refusal = require_run(ARGV[at + 1], ARGV[at + 2])
    if not run then return refusal end
    if has_ended(run) then
      if run.state ~= ARGV[at + 3] then return conflict(run, end_reason(run)) end
      return reply('ok', run)
    end
    finish(run, ARGV[at + 3], error_in(ARGV[at + 4]))
    publish('+', run)
    return reply('ok', run, true)
  end

  -- stop NAME GENERATION
  function verbs.stop(at)
    local run, refusal = require_run(ARGV[at + 1], ARGV[at + 2])
    if not run then return refusal end
    if run.state ~= 'open' then return reply('ok', run) end
    local is_over = not is_held(run)
    if is_over then finish(run, 'stopped', false) else enter_state(run, 'stopping') end
    publish('+', run)
    return reply('ok', run, is_over)
  end

  -- delete NAME GENERATION
  function verbs.delete(at)
    local run, refusal = require_run(ARGV[at + 1], ARGV[at + 2])
    if not run then return refusal end
    local was_open = not has_ended(run)
    if was_open then finish(run, 'failed', 'deleted') end
    remove(run)
    return reply('ok', run, was_open)
  end

  -- get NAME
  function verbs.get(at)
    local run = find(ARGV[at + 1])
    return reply('ok', run)
  end

  -- Returns the events of a run from the ordinal `first` on, as many as `max_bytes` allow, at least one.
  local function page(run, first, max_bytes)
    if first > run.events then return {} end
    local likely = math.ceil(max_bytes / (run.bytes / run.events)) + 1
    local stream, entries, left = stream_of(run), {}, max_bytes
    while first <= run.events do
      local found = redis.call('XRANGE', stream, first .. '-0', '+', 'COUNT', math.min(likely, 500))
      if #found == 0 then return entries end
      for _, entry in ipairs(found) do
        left = left - #entry[2][2] - 28  -- 4 are the brackets and the quotes around its data
        if left < 0 and #entries > 0 then return entries end
        entries[#entries + 1] = entry[2][2]
      end
      first = first + #found
    end
    return entries
  end

  -- read NAME LOG AFTER MAX_BYTES
  function verbs.read(at)
    local run = find(ARGV[at + 1])
    if not run or run.log ~= ARGV[at + 2] then return {'unknown'} end
    return {'ok', page(run, ARGV[at + 3] + 1, tonumber(ARGV[at + 4]))}
  end

  -- look NAME LOG FIRST MAX_BYTES: returns the run, its last event, those from FIRST on, if this is its log, or else all
  -- of them, none if they are larger; and the connection that appends, or did last.
  function verbs.look(at)
    local run = find(ARGV[at + 1])
    if not run then return reply('ok') end
    local first = run.log == ARGV[at + 2] and math.max(1, tonumber(ARGV[at + 3])) or 1
    local entries = page(run, first, tonumber(ARGV[at + 4]))
    if first + #entries <= run.events then entries = {} end
    local last = run.events > 0 and page(run, run.events, 1)[1] or false
    return reply('ok', run, false, last, entries, run.connection)
  end

  -- lost NAME OLD_LOG LOG: a node knows other events of OLD_LOG than there are.
  function verbs.lost(at)
    local run = find(ARGV[at + 1])
    if not run or run.log ~= ARGV[at + 2] then return reply('ok') end
    if not renew_log(run, ARGV[at + 3]) then return lose(run) end
    return reply('ok')
  end

  local function is_less(a, b)
    for i = 1, math.min(#a, #b) do
      local left, right = string.byte(a, i), string.byte(b, i)
      if left ~= right then return left < right end
    end
    return #a < #b
  end

  -- list USER AFTER COUNT, followed by states: looks at the next runs after this name, for USER or everyone, or if it is
  -- empty all of them. Returns the last name if there may be more, and the names and records of those in these states.
  function verbs.list(at)
    local user, after, limit = ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
    local is_wanted = {}
    for i = at + 4, at + ARGV[at] do is_wanted[ARGV[i]] = true end
    local keys = user == '' and {index} or user == '*' and {prefix .. 'runs-of:*'}
      or {prefix .. 'runs-of:' .. user, prefix .. 'runs-of:*'}
    local names, is_known = {}, {}
    for _, key in ipairs(keys) do
      local found = redis.call('ZRANGEBYLEX', key, after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, limit)
      for _, name in ipairs(found) do
        if not is_known[name] then names[#names + 1], is_known[name] = name, true end
      end
    end
    if #keys > 1 then table.sort(names, is_less) end
    local records, count = {}, math.min(#names, limit)
    for i = 1, count do
      local run = find(names[i])
      if not run then
        for _, key in ipairs(keys) do if key ~= index then redis.call('ZREM', key, names[i]) end end
      elseif is_wanted[run.state] then
        records[#records + 1], records[#records + 2] = names[i], record_of(run)
      end
    end
    return {'ok', count == limit and names[count] or false, records}
  end

  -- Counts all runs and their bytes anew, and forgets the names of those whose keys are missing.
  local function count_all()
    local counts, bytes, after = {}, 0, '-'
    while true do
      local names = redis.call('ZRANGEBYLEX', index, after, '+', 'LIMIT', 0, 500)
      if #names == 0 then break end
      for _, name in ipairs(names) do
        local run = redis.call('HMGET', key_of(name), 'state', 'bytes', 'size')
        if run[1] then
          counts[run[1]], bytes = (counts[run[1]] or 0) + 1, bytes + run[2] + run[3]
        else
          redis.call('ZREM', index, name)
          redis.call('ZREM', deadlines, name)
        end
      end
      after = '(' .. names[#names]
    end
    redis.call('HSET', totals, 'bytes', text(bytes), 'counted', now_ms)
    for i = 2, #total_fields do redis.call('HSET', totals, total_fields[i], counts[total_fields[i]] or 0) end
  end

  -- Does what is due for the run `name`. Returns its record if it has ended, and whether its keys are missing.
  local function run_out(name)
    local run = find(name)
    if not run then
      redis.call('ZREM', deadlines, name)
      redis.call('ZREM', index, name)
      redis.call('PUBLISH', channels .. name, '?')
      return nil, true
    end
    if deadline_of(run) > now then
      watch(run)
    elseif has_ended(run) then
      remove(run)
    else
      if run.state == 'open' then finish(run, 'failed', 'idle') else finish(run, 'stopped', false) end
      publish('+', run)
      return record_of(run), false
    end
    return nil, false
  end

  -- sweep NODE COUNT TOMBSTONE_MS MAX_TOMBSTONES EPOCH: renews the claims of a node, and does what is due, so many runs
  -- at a time. Returns whether there may be more to do, the names and records of runs that have ended, the epoch, and an
  -- error if a run could not be looked at. The epoch is the given one, if there is none, since everything was deleted.
  function verbs.sweep(at)
    local node, limit, tombstone_ms, max_tombstones, new_epoch = unpack(ARGV, at + 1, at + 5)
    local epoch = redis.call('HGET', totals, 'epoch')
    if not epoch then
      epoch = new_epoch
      redis.call('HSET', totals, 'epoch', epoch)
    end
    notice_absence()
    redis.call('HSET', totals, 'swept', now_ms)
    renew(node)
    redis.call('ZREMRANGEBYSCORE', leases, '-inf', text(now - 60000))
    local due, ended, is_any_missing, failure = {}, {}, false, false
    if now >= (redis.call('HGET', totals, 'resumed') or 0) + away_ms then
      due = redis.call('ZRANGEBYSCORE', deadlines, '-inf', now_ms, 'LIMIT', 0, limit)
    end
    for _, name in ipairs(due) do
      local is_done, record, is_missing = pcall(run_out, name)
      if not is_done then
        redis.call('ZADD', deadlines, text(now + 60000), name)  -- the others must not wait for it
        failure = error_text(record)
      elseif record then
        ended[#ended + 1], ended[#ended + 2] = name, record
      end
      is_any_missing = is_any_missing or is_missing
    end
    local old = redis.call('ZRANGEBYSCORE', tombstone_ages, '-inf', text(now - tombstone_ms), 'LIMIT', 0, 500)
    local over = math.min(redis.call('ZCARD', tombstone_ages) - max_tombstones, 500)
    if over > #old then old = redis.call('ZRANGE', tombstone_ages, 0, over - 1) end
    for _, name in ipairs(old) do dig_up(name) end
    local all = 0
    for i = 2, #total_fields do all = all + (redis.call('HGET', totals, total_fields[i]) or 0) end
    if is_any_missing or all ~= redis.call('ZCARD', index) then
      -- Keys were deleted, or evicted: what they counted for is unknown.
      if now - (redis.call('HGET', totals, 'counted') or 0) > 60000 then count_all() end
    end
    local has_more = (#due == tonumber(limit) or #old >= 500) and 1 or 0
    return {'ok', has_more, ended, epoch, failure}
  end

  -- leave NODE: the claims of this node are not alive any more.
  function verbs.leave(at)
    redis.call('ZREM', leases, ARGV[at + 1])
    return reply('ok')
  end

  -- check: runs every command that is used here, without effect, so that a missing permission raises an error.
  function verbs.check()
    local key = prefix .. 'run-check'
    local other = key .. '/1'
    redis.call('DEL', key, other)
    redis.call('XADD', key, '1-0', 'e', '')
    redis.call('XADD', key, 'NOMKSTREAM', '2-0', 'e', '')
    redis.call('RENAME', key, other)
    redis.call('XRANGE', other, '1-0', '+', 'COUNT', 1)
    redis.call('XLEN', other)
    redis.call('PEXPIRE', other, 1000)
    redis.call('HSET', key, 'n', 1)
    redis.call('HINCRBY', key, 'n', 1)
    redis.call('HMGET', key, 'n')
    redis.call('HGET', key, 'n')
    redis.call('HDEL', key, 'n')
    redis.call('ZADD', key, 0, 'n')
    redis.call('ZSCORE', key, 'n')
    redis.call('ZCARD', key)
    redis.call('ZRANGE', key, 0, 0)
    redis.call('ZRANGEBYSCORE', key, 0, 0)
    redis.call('ZRANGEBYLEX', key, '-', '+')
    redis.call('ZREMRANGEBYSCORE', key, 0, 0)
    redis.call('ZREM', key, 'n')
    redis.call('UNLINK', key, other)
    redis.call('PUBLISH', channels .. '/', '')
    return reply('ok')
  end

  return verbs
end

local replies, at, finish, verbs = {}, 5, #ARGV, nil
while at < finish do
  local verb, reply = ARGV[at], nil
  if verb == 'append' then reply = append_quickly(at + 1) end
  if not reply then
    verbs = verbs or make_verbs()
    count_bytes()
    local is_done, result = pcall(verbs[verb], at + 1)
    if not is_done then
      result = error_text(result)
      -- The node has to find the primary: it connects again after an error of the whole call.
      if string.find(result, 'READONLY', 1, true) then return redis.error_reply(result) end
    end
    reply = is_done and result or {'error', result}
  end
  replies[#replies + 1] = reply
  at = at + 2 + ARGV[at + 1]
end
count_bytes()
replies[#replies + 1] = verbs and redis.call('HMGET', totals, unpack(total_fields)) or false
return replies
