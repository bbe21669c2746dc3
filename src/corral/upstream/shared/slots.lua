-- The book of one llama-server's slots: who holds how many, and who waits in line for more.
--
-- KEYS[1]   the book, a hash: a field for each Corral, and `version`
-- ARGV[1]   numbers in one text: the slots there are; how long what a Corral holds stays its own, and its place in
--           line, and how long everybody may take to state what they hold after this server was away (ms); the slots
--           that its calls hold; then the tasks of each call that is to start, in order
-- ARGV[2]   the Corral; [3] the channel; [4] the name that is told there
-- returns   one text: how many of these calls may start; the slots that others hold; those that are kept for others who
--           have asked before; the version; in how many ms the first of the others' entries ends (-1: there is none)
--
-- What a Corral holds is taken down as it says, even beyond the slots there are: its calls run. More is granted only as
-- far as there is room for it and for everybody who stands in line before it, so that nobody is overtaken for ever: not
-- by one who has calls waiting all the time, nor a call for many slots by calls for few. The first call that there is
-- no room for stands in line, one for each Corral. Figures are absolute, so asking twice changes nothing.

local FORGOTTEN_MS = 24 * 3600 * 1000

local book = KEYS[1]
local numbers = {}
for number in string.gmatch(ARGV[1], '%d+') do
  numbers[#numbers + 1] = tonumber(number)
end
local slots, lease_ms, place_ms, settle_ms, keep = unpack(numbers, 1, 5)
local me, channel, name = ARGV[2], ARGV[3], ARGV[4]

-- The server's clock: those of the Corrals may differ.
local clock = redis.call('TIME')
local now_us = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local now = math.floor(now_us / 1000)

-- Versions grow, also when the clock is set back and when a forgotten book begins anew.
local last_us = tonumber(redis.call('HGET', book, 'version') or '0')
local version = math.max(last_us + 1, now_us)

-- Who holds something says so more often than this. When nobody has said anything for longer, this server was away
-- from them all, and they have not been able to state what their calls hold; or who did hold something is dead.
local silence = now - math.floor(last_us / 1000) > lease_ms / 2

local fields = redis.call('HGETALL', book)
local total_before, line_before = 0, 0
local others, line, expires_ms = 0, {}, -1
local my_place

local function write(who, held, till, waits, place_till, since)
  redis.call('HSET', book, who, string.format('%d %.0f %d %.0f %.0f', held, till, waits, place_till, since))
end

local function ends(at)
  if at > now and (expires_ms < 0 or at - now < expires_ms) then
    expires_ms = at - now
  end
end

for i = 1, #fields, 2 do
  local who = fields[i]
  if who ~= 'version' then
    -- held, until when; tasks that wait (0: none), until when, since which version
    local held, till, waits, place_till, since = string.match(fields[i + 1], '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
    held, till, waits, place_till, since =
      tonumber(held), tonumber(till), tonumber(waits), tonumber(place_till), tonumber(since)
    total_before, line_before = total_before + held, line_before + waits
    if silence and held > 0 and place_till > 0 and till < now + settle_ms then
      -- Once: who does not state it meanwhile is dead. Its place in line has ended in the silence.
      till, waits, place_till = now + settle_ms, 0, 0
      write(who, held, till, waits, place_till, since)
    end
    if waits > 0 and place_till <= now then
      -- Written down, so that its end is told once.
      waits = 0
      write(who, held, till, waits, place_till, since)
    end
    if who == me then
      if waits > 0 then
        my_place = since
      end
    elseif till <= now then
      redis.call('HDEL', book, who)
    else
      others = others + held
      ends(till)
      if waits > 0 then
        line[#line + 1] = { since, waits }
        ends(place_till)
      end
    end
  end
end

local function kept_before(place)
  local sum = 0
  for _, each in ipairs(line) do
    if place == nil or each[1] < place then
      sum = sum + each[2]
    end
  end
  return sum
end

local granted, held, waits = 0, keep, 0
local ahead = kept_before(my_place)
for i = 6, #numbers do
  local tasks = numbers[i]
  if others + held + tasks + ahead > slots then
    -- One that there can never be room for must not stand in the way of others.
    if tasks <= slots then
      waits = tasks
    end
    break
  end
  held, granted = held + tasks, granted + 1
  -- A place is for one call: the next one stands behind everybody who waits now.
  my_place = nil
  ahead = kept_before(nil)
end

if held == 0 and waits == 0 then
  redis.call('HDEL', book, me)
else
  write(me, held, now + lease_ms, waits, now + place_ms, my_place or version)
end
redis.call('HSET', book, 'version', string.format('%.0f', version))
-- A book that nobody has used for long is forgotten: longer than anybody is cut off with calls that still run.
redis.call('PEXPIRE', book, FORGOTTEN_MS)

local total, in_line = others + held, waits
for _, each in ipairs(line) do
  in_line = in_line + each[2]
end
-- Who waits wants to know of room, everybody else how much is taken.
if total ~= total_before or total + in_line < total_before + line_before then
  redis.call('PUBLISH', channel, string.format('%.0f %d %s', version, total, name))
end
return string.format('%d %d %d %.0f %.0f', granted, others, ahead, version, expires_ms)
