-- The limits of one account, counted for all Corrals. One writer: this script, which Valkey runs whole or not at all.
--
-- KEYS[1]  leases     ZSET  id of a reservation -> when it is forgotten; "x:" .. id of one that must not be made
-- KEYS[2]  open       HASH  id -> tokens,day,month and, for each scope, the bits of what was taken
-- then five of each scope (all models, or one):
--   requests          ZSET  id -> when it leaves the window
--   tokens            ZSET  "o:" .. id of what is reserved, "g:…" of a portion that was used -> when it leaves
--   amounts           HASH  the same -> tokens; "#" is their sum
--   in flight         ZSET  id -> when it is freed if nobody refreshes it
--   budgets           HASH  of the day (d…) and month (m…): number, when it ends, tokens used, tokens reserved
--
-- ARGV[1] is all words of a command in one, as each argument of its own costs the caller time: what to do, the clock,
-- and what that takes. Times are microseconds of the server's clock; tests give their own, others say "-".

local HINT_US = 1000000
local NEVER = -1
local GRAINS = 1024
local WALK = 128
local DAY_S = 86400
-- Longer than a month.
local BUDGET_MS = 40 * DAY_S * 1000
local KEYS_OF_SCOPE = 5
local REQUESTS, TOKENS, IN_FLIGHT, DAY, MONTH = 1, 2, 3, 4, 5
local BITS = {1, 2, 4, 8, 16}

local words = {}
for word in string.gmatch(ARGV[1], '%S+') do words[#words + 1] = word end

local function clock()
  if words[2] ~= '-' then return tonumber(words[2]) end
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

local now = clock()

local function has(bits, meter)
  return math.floor(bits / BITS[meter]) % 2 == 1
end

local function scope(index)
  local at = 2 + (index - 1) * KEYS_OF_SCOPE
  return {requests = KEYS[at + 1], tokens = KEYS[at + 2], amounts = KEYS[at + 3], in_flight = KEYS[at + 4],
          budgets = KEYS[at + 5]}
end

local function scopes()
  return (#KEYS - 2) / KEYS_OF_SCOPE
end

-- A key goes when nothing in it can count any more.
local function keep(key, us)
  redis.call('PEXPIRE', key, math.ceil(us / 1000) + 1000)
end

-- Days and months ----------------------------------------------------------------------------------------------------

local function days_before(year, month)
  local y = month <= 2 and year - 1 or year
  local era = math.floor(y / 400)
  local of_era = y - era * 400
  local of_year = math.floor((153 * ((month + 9) % 12) + 2) / 5)
  return era * 146097 + of_era * 365 + math.floor(of_era / 4) - math.floor(of_era / 100) + of_year - 719468
end

local function day_of(seconds)
  local number = math.floor(seconds / DAY_S)
  return number, (number + 1) * DAY_S
end

-- The algorithm of Howard Hinnant, civil_from_days.
local function month_of(seconds)
  local z = math.floor(seconds / DAY_S) + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local shifted = math.floor((5 * doy + 2) / 153)
  local month = shifted < 10 and shifted + 3 or shifted - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  local number = year * 12 + month - 1
  return number, days_before(math.floor((number + 1) / 12), (number + 1) % 12 + 1) * DAY_S
end

local PERIODS = {[DAY] = {letter = 'd', of = day_of}, [MONTH] = {letter = 'm', of = month_of}}

-- The budget as it stands, begun anew when its period is over; a clock that steps back gives nothing back.
local function budget(of, meter)
  local period = PERIODS[meter]
  local l = period.letter
  local read = redis.call('HMGET', of.budgets, l .. 'n', l .. 'e', l .. 'u', l .. 'o')
  local number, ends = tonumber(read[1]), tonumber(read[2])
  if not ends or now / 1000000 >= ends then
    number, ends = period.of(now / 1000000)
    return {number = number, ends = ends, used = 0, open = 0}
  end
  return {number = number, ends = ends, used = tonumber(read[3]), open = tonumber(read[4])}
end

local function write_budget(of, meter, kept)
  local l = PERIODS[meter].letter
  redis.call('HSET', of.budgets, l .. 'n', kept.number, l .. 'e', kept.ends, l .. 'u', kept.used, l .. 'o', kept.open)
  redis.call('PEXPIRE', of.budgets, BUDGET_MS)
end

-- What each limit counts with: how much is left, when it is reset, and for how long it says no (nil: it says yes) ------

local function ask_requests(of, limit)
  redis.call('ZREMRANGEBYSCORE', of.requests, '-inf', now)
  local held = redis.call('ZCARD', of.requests)
  if held < limit then return nil end
  if limit == 0 then return HINT_US end
  return redis.call('ZRANGE', of.requests, held - limit, held - limit, 'WITHSCORES')[2] - now
end

local function stand_requests(of, limit)
  local last = redis.call('ZRANGE', of.requests, -1, -1, 'WITHSCORES')
  return limit - redis.call('ZCARD', of.requests), last[2] and last[2] - now or 0
end

local function remove_tokens(of, member)
  if redis.call('ZREM', of.tokens, member) == 1 then
    redis.call('HINCRBY', of.amounts, '#', -tonumber(redis.call('HGET', of.amounts, member) or 0))
    redis.call('HDEL', of.amounts, member)
    return true
  end
end

local function add_tokens(of, member, leaves, amount, window, lease)
  redis.call('ZADD', of.tokens, leaves, member)
  redis.call('HINCRBY', of.amounts, member, amount)
  redis.call('HINCRBY', of.amounts, '#', amount)
  keep(of.tokens, 2 * window + lease)
  keep(of.amounts, 2 * window + lease)
end

local function counted_tokens(of)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', of.tokens, '-inf', now)) do remove_tokens(of, member) end
  return tonumber(redis.call('HGET', of.amounts, '#') or 0)
end

local function ask_tokens(of, limit, amount)
  if amount > limit then return NEVER end
  local missing = counted_tokens(of) + amount - limit
  if missing <= 0 then return nil end
  local wait, walked = HINT_US, 0
  local found = redis.call('ZRANGE', of.tokens, 0, WALK, 'WITHSCORES')
  for i = 1, #found, 2 do
    if string.sub(found[i], 1, 1) == 'g' then
      if walked == WALK then return wait end
      walked, wait = walked + 1, found[i + 1] - now
      missing = missing - redis.call('HGET', of.amounts, found[i])
      if missing <= 0 then return wait end
    end
  end
  return HINT_US
end

local function stand_tokens(of, limit, window)
  local last = redis.call('ZREVRANGE', of.tokens, 0, 0, 'WITHSCORES')
  local reset = 0
  -- What is open now may end now. (A reservation's own time is beyond that of all that was used.)
  if last[1] then reset = string.sub(last[1], 1, 1) == 'o' and window or last[2] - now end
  return limit - counted_tokens(of), reset
end

local function ask_in_flight(of, limit)
  redis.call('ZREMRANGEBYSCORE', of.in_flight, '-inf', now)
  if redis.call('ZCARD', of.in_flight) >= limit then return HINT_US end
end

local function stand_in_flight(of, limit)
  local count = redis.call('ZCARD', of.in_flight)
  return limit - count, count > 0 and HINT_US or 0
end

local function ask_budget(of, meter, limit, amount)
  if amount > limit then return NEVER end
  local kept = budget(of, meter)
  if kept.used + kept.open + amount > limit then return kept.ends * 1000000 - now end
end

local function ask(of, meter, limit, amount)
  if meter == REQUESTS then return ask_requests(of, limit) end
  if meter == TOKENS then return ask_tokens(of, limit, amount) end
  if meter == IN_FLIGHT then return ask_in_flight(of, limit) end
  return ask_budget(of, meter, limit, amount)
end

local function stand(of, meter, limit, window)
  if meter == REQUESTS then return stand_requests(of, limit) end
  if meter == TOKENS then return stand_tokens(of, limit, window) end
  if meter == IN_FLIGHT then return stand_in_flight(of, limit) end
  local kept = budget(of, meter)
  return limit - kept.used - kept.open, kept.ends * 1000000 - now
end

-- Reservations -------------------------------------------------------------------------------------------------------

local function parsed(record)
  local fields = {}
  for field in string.gmatch(record, '[^,]+') do fields[#fields + 1] = tonumber(field) end
  return fields
end

local function hold(id, record, window, lease)
  local fields = parsed(record)
  redis.call('ZADD', KEYS[1], now + window + lease, id)
  redis.call('HSET', KEYS[2], id, record)
  keep(KEYS[1], window + lease)
  keep(KEYS[2], window + lease)
  for index = 1, scopes() do
    local of, bits = scope(index), fields[3 + index]
    if has(bits, TOKENS) then
      local member = 'o:' .. id
      if redis.call('ZSCORE', of.tokens, member) then
        redis.call('ZADD', of.tokens, now + window + lease, member)
        keep(of.tokens, 2 * window + lease)
        keep(of.amounts, 2 * window + lease)
      else
        add_tokens(of, member, now + window + lease, fields[1], window, lease)
      end
    end
    if has(bits, IN_FLIGHT) then
      redis.call('ZADD', of.in_flight, now + lease, id)
      keep(of.in_flight, lease)
    end
  end
end

local function sweep()
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
    redis.call('ZREM', KEYS[1], id)
    redis.call('HDEL', KEYS[2], id)
  end
end

-- Words: id, window, lease, tokens, and for each scope five limits (-1 is none) and the bits of those that only report.
-- Answers, as one text: the record or "-", and for each limit that there is: 1 yes, 2 no, 3 would say no; left, reset,
-- wait. "void" for one that was given back before it came.
local function take()
  local id, window, lease, tokens = words[3], tonumber(words[4]), tonumber(words[5]), tonumber(words[6])
  if redis.call('ZSCORE', KEYS[1], 'x:' .. id) then return 'void' end
  sweep()
  local admitted, said = 1, {}
  for index = 1, scopes() do
    local of, at = scope(index), 6 + (index - 1) * 6
    local shadow = tonumber(words[at + 6])
    for meter = 1, 5 do
      local limit = tonumber(words[at + meter])
      if limit >= 0 then
        local wait = ask(of, meter, limit, tokens)
        local state = not wait and 1 or has(shadow, meter) and 3 or 2
        if state == 2 then admitted = 0 end
        said[#said + 1] = {state = state, limit = limit, of = of, meter = meter, scope = index, wait = wait or 0}
      end
    end
  end
  local record = '-'
  if admitted == 1 then
    local bits, held = {}, false
    local day, month = 0, 0
    for index = 1, scopes() do bits[index] = 0 end
    for _, verdict in ipairs(said) do
      if verdict.state == 1 then
        local of, meter = verdict.of, verdict.meter
        bits[verdict.scope] = bits[verdict.scope] + BITS[meter]
        held = held or meter ~= REQUESTS
        if meter == REQUESTS then
          redis.call('ZADD', of.requests, now + window, id)
          keep(of.requests, window)
        elseif PERIODS[meter] then
          local kept = budget(of, meter)
          kept.open = kept.open + tokens
          write_budget(of, meter, kept)
          if meter == DAY then day = kept.number else month = kept.number end
        end
      end
    end
    if held then
      record = string.format('%d,%d,%d', tokens, day, month)
      for index = 1, scopes() do record = record .. ',' .. bits[index] end
      hold(id, record, window, lease)
    end
  end
  local answer = {record}
  for _, verdict in ipairs(said) do
    local left, reset = stand(verdict.of, verdict.meter, verdict.limit, window)
    answer[#answer + 1] = string.format('%d %d %.0f %.0f', verdict.state, math.max(0, left),
      math.ceil(math.max(0, reset)), math.ceil(verdict.wait))
  end
  return table.concat(answer, ' ')
end

-- Words: id, window, lease, tokens used, whether it ran, whether it is not known to have been taken.
-- Settles once, however often it is told to; what is not there is settled already.
local function settle()
  local id, window, lease, used = words[3], tonumber(words[4]), tonumber(words[5]), tonumber(words[6])
  local ran, void = words[7] == '1', words[8] == '1'
  if void then
    -- It may still come, on a connection that was given up.
    redis.call('ZADD', KEYS[1], now + window + lease, 'x:' .. id)
    keep(KEYS[1], window + lease)
  end
  local record = redis.call('HGET', KEYS[2], id)
  for index = 1, scopes() do
    if not ran then redis.call('ZREM', scope(index).requests, id) end
  end
  if not record then return 0 end
  redis.call('HDEL', KEYS[2], id)
  redis.call('ZREM', KEYS[1], id)
  local fields = parsed(record)
  for index = 1, scopes() do
    local of, bits = scope(index), fields[3 + index]
    if has(bits, TOKENS) then
      remove_tokens(of, 'o:' .. id)
      if used > 0 then
        local grain = window / GRAINS
        local leaves = (math.floor(now / grain) + 1) * grain + window
        add_tokens(of, string.format('g:%.3f', leaves), leaves, used, window, lease)
      end
    end
    if has(bits, IN_FLIGHT) then redis.call('ZREM', of.in_flight, id) end
    for meter, number in pairs({[DAY] = fields[2], [MONTH] = fields[3]}) do
      local kept = budget(of, meter)
      if has(bits, meter) and kept.number == number then
        kept.open = math.max(0, kept.open - fields[1])
        kept.used = kept.used + used
        write_budget(of, meter, kept)
      end
    end
  end
  return 1
end

-- Words: window, lease, and pairs of id and record: their owner lives, and they are open.
local function refresh()
  for i = 5, #words, 2 do hold(words[i], words[i + 1], tonumber(words[3]), tonumber(words[4])) end
  return 1
end

-- Words: day, tokens of it, month, tokens of it. Only ever raises what is counted.
local function restore()
  local of = scope(1)
  for meter, at in pairs({[DAY] = 3, [MONTH] = 5}) do
    local kept, number = budget(of, meter), tonumber(words[at])
    if kept.number == number then
      kept.used = math.max(kept.used, tonumber(words[at + 1]))
      write_budget(of, meter, kept)
    end
  end
  return 1
end

return ({take = take, settle = settle, refresh = refresh, restore = restore})[words[1]]()
