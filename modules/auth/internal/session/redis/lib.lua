-- Begins every script. Times are whole milliseconds since 1970 by this server's clock, which
-- Lua's numbers hold exactly. skew is zero but in tests.

local function clock(skew)
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000) + skew
end

-- What the store reads of a record, in its order; then what only the scripts need.
local function read(record)
  return redis.call('HMGET', record, 'gen', 'hash', 'epoch', 'device', 'agent', 'ip', 'auth', 'created', 'used',
    'expires', 'idle', 'recorded', 'stopped', 'prev', 'replay', 'linked')
end
local GEN, HASH, AGENT, IP, AUTH, USED, EXPIRES, IDLE, STOPPED, PREV, REPLAY, LINKED =
  1, 2, 5, 6, 7, 9, 10, 11, 13, 14, 15, 16

-- The link of a generation: a key that Redis drops when the window is over, named base and
-- generation. Its value is when the token was replaced and when its window ends, of 13 digits
-- each, the hash of its secret and its successor, sealed.
local function getLink(base, g)
  local value = redis.call('GET', base .. g)
  if not value then return nil end
  return {at = tonumber(value:sub(1, 13)), ends = tonumber(value:sub(14, 26)), hash = value:sub(27, 58), sealed = value:sub(59)}
end
local function setLink(base, g, at, ends, hash, sealed, now)
  -- Dropped after the window: then not even the old token and this server together give the
  -- newest one. The second more makes sure that it is there as long as it is asked for.
  redis.call('SET', base .. g, string.format('%.0f%.0f', at, ends) .. hash .. sealed, 'PX', ends - now + 1000)
end

-- Notes that the tokens of these generations, of which there are no links, were replaced such
-- that their windows are over at ends. The key is a sorted set by generation, of "generation:ends";
-- a member holds for those up to its generation from the member before. It is exact to a part
-- of the window, so that a session which is refreshed all the time has a bounded number.
local function mark(marks, from, to, ends, now, grace)
  local last, lastEnds = 0, 0
  local newest = redis.call('ZREVRANGE', marks, 0, 0)[1]
  if newest then
    last, lastEnds = newest:match('^(%d+):(%d+)$')
    last, lastEnds = tonumber(last), tonumber(lastEnds)
  end
  if ends <= now or from > to or to <= last then return end
  local step = math.max(1, math.floor(grace / 128))
  if from - 1 > last then
    redis.call('ZADD', marks, from - 1, (from - 1) .. ':0') -- those below are none of it
  elseif newest and math.floor(lastEnds / step) == math.floor(ends / step) then
    redis.call('ZREM', marks, newest) -- the same to within a step
  end
  redis.call('ZADD', marks, to, to .. ':' .. string.format('%.0f', ends))
  redis.call('ZREMRANGEBYRANK', marks, 0, -261)
  if redis.call('PTTL', marks) < ends - now then redis.call('PEXPIRE', marks, ends - now) end
end

-- Takes away links that no longer lead to the newest token, and marks when they were made.
local function loseLinks(base, marks, from, to, now)
  for g = math.max(1, from), to do
    local l = getLink(base, g)
    if l then
      mark(marks, g, g, l.ends, now, 0)
      redis.call('DEL', base .. g)
    end
  end
end

-- Keeps the successor of the token of generation g, which is the current one or ahead of it, and
-- what leads to it from those replaced before. r is the record as it was, most the number of
-- links that are kept.
local function keep(r, successor, base, marks, g, presented, sealed, grace, now, most)
  local gen, linked = tonumber(r[GEN]), tonumber(r[LINKED] or 0)
  if linked ~= gen and gen > 1 then
    -- Servers of a release before, which keep no links, have rotated since.
    local ends = tonumber(r[REPLAY])
    if linked < gen - 1 then
      loseLinks(base, marks, gen - most, linked - 1, now)
      mark(marks, math.max(1, linked), gen - 2, ends, now, grace)
    end
    local kept = now < ends and redis.call('GET', successor)
    if kept then setLink(base, gen - 1, tonumber(r[USED]), ends, r[PREV], kept, now) end
  end
  if g > gen then
    -- The record has missed rotations: when, is not known.
    loseLinks(base, marks, gen - most, gen - 1, now)
    mark(marks, gen, g - 1, now + grace, now, grace)
  end
  if grace > 0 then
    redis.call('SET', successor, sealed, 'PX', grace + 1000) -- which is all that a release before knows of
    setLink(base, g, now, now + grace, presented, sealed, now)
  else
    redis.call('DEL', successor)
  end
  if g > most then
    local over = getLink(base, g - most)
    if over then
      mark(marks, g - most, g - most, over.ends, now, grace)
      redis.call('DEL', base .. (g - most))
    end
  end
end
