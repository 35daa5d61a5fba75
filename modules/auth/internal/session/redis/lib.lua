-- Begins every script. Times are whole milliseconds since 1970 by this server's clock, which
-- Lua's numbers hold exactly. skew is zero but in tests.

local function clock(skew)
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000) + skew
end

-- The fields that the store reads, in this order; then those that only the scripts need.
local function read(record)
  return redis.call('HMGET', record, 'gen', 'hash', 'epoch', 'device', 'agent', 'ip', 'auth', 'created', 'used',
    'expires', 'idle', 'recorded', 'stopped', 'prev', 'replay', 'linked')
end
local GEN, HASH, AGENT, IP, AUTH, USED, EXPIRES, IDLE, STOPPED, PREV, REPLAY, LINKED =
  1, 2, 5, 6, 7, 9, 10, 11, 13, 14, 15, 16

-- A link is a key that Redis drops when the window is over, named base and generation. Its value
-- is when the token was replaced, in 13 digits, for how long its window is open, in 8, the hash
-- of its secret and its successor, sealed.
local function getLink(base, g)
  local value = redis.call('GET', base .. g)
  if not value then return nil end
  local at = tonumber(value:sub(1, 13))
  return {at = at, ends = at + tonumber(value:sub(14, 21)), hash = value:sub(22, 53), sealed = value:sub(54)}
end

-- How many links more than the bound there may be: they go several at a time, which costs a
-- rotation next to nothing.
local PORTION = 32

-- What is not needed of an ordinary rotation, made when it is. The marks are a sorted set by
-- generation, of "generation:ends": the tokens up to that one, from the member before on, of
-- which there are no links, were replaced such that their windows are over at ends. It is exact
-- to a part of the window, so that a session which is refreshed all the time has few of them.
local function losing(base, marks, now, grace)
  local step = math.max(1, math.floor(grace / 128))
  local function mark(from, to, ends)
    local last, lastEnds = 0, 0
    local newest = redis.call('ZREVRANGE', marks, 0, 0)[1]
    if newest then
      last, lastEnds = newest:match('^(%d+):(%d+)$')
      last, lastEnds = tonumber(last), tonumber(lastEnds)
    end
    if ends <= now or from > to or to <= last then return end
    if from - 1 > last then
      redis.call('ZADD', marks, from - 1, (from - 1) .. ':0') -- those below are none of it
    elseif newest and math.floor(lastEnds / step) == math.floor(ends / step) then
      redis.call('ZREM', marks, newest) -- the same to within a step
    end
    redis.call('ZADD', marks, to, to .. ':' .. string.format('%.0f', ends))
    redis.call('ZREMRANGEBYRANK', marks, 0, -261)
    if redis.call('PTTL', marks) < ends - now then redis.call('PEXPIRE', marks, ends - now) end
  end
  -- Deletes links, and marks when they were made.
  local function lose(from, to)
    from = math.max(1, from)
    if from > to then return end
    local names = {}
    -- Neighbours whose windows are over within one step are marked together.
    local first, last, ends
    for g = from, to do
      names[#names + 1] = base .. g
      local l = getLink(base, g)
      if first and not (l and math.floor(l.ends / step) == math.floor(ends / step)) then
        mark(first, last, ends)
        first = nil
      end
      if l then
        first, last, ends = first or g, g, l.ends
      end
    end
    if first then mark(first, last, ends) end
    redis.call('DEL', unpack(names))
  end
  return mark, lose
end

-- Stores the successor of the token of generation g, which is the current one or ahead of it,
-- and the link to it. r is the record as it was, most the number of links to keep; at is now, as
-- text.
local function keep(r, successor, base, marks, g, presented, sealed, grace, now, at, most)
  local gen = tonumber(r[GEN])
  if r[LINKED] ~= r[GEN] and gen > 1 then
    -- Servers of a previous release, which store no links, have rotated since.
    local linked, ends, used = tonumber(r[LINKED] or 0), tonumber(r[REPLAY]), tonumber(r[USED])
    if linked < gen - 1 then
      local mark, lose = losing(base, marks, now, grace)
      lose(gen - most - PORTION, linked - 1)
      mark(math.max(1, linked), gen - 2, ends)
    end
    local kept = now < ends and redis.call('GET', successor)
    if kept then
      redis.call('SET', base .. (gen - 1), string.format('%013.0f%08.0f', used, ends - used) .. r[PREV] .. kept, 'PX', ends - now + 1000)
    end
  end
  if g > gen then
    -- The record has missed rotations, and nobody knows when they were.
    local mark, lose = losing(base, marks, now, grace)
    lose(gen - most - PORTION, gen - 1)
    mark(gen, g - 1, now + grace)
  end
  if grace > 0 then
    -- Expires after the window: then not even the old token and this server together give the
    -- newest one. One more second makes sure that it exists as long as it may be asked for. A
    -- previous release only knows the first key.
    local ttl = grace + 1000
    redis.call('SET', successor, sealed, 'PX', ttl)
    redis.call('SET', base .. g, at .. string.format('%08d', grace) .. presented .. sealed, 'PX', ttl)
  else
    redis.call('DEL', successor)
  end
  if g % PORTION == 0 and g > most and getLink(base, g - most) then
    local _, lose = losing(base, marks, now, grace)
    lose(g - most - PORTION + 1, g - most)
  end
end

-- The answer that there is no such session. Only a server that takes writes may give it, since a
-- replica may not have the session yet; the write here changes nothing. The key is a sorted set.
local function gone(key)
  redis.call('ZREM', key, '')
  return {'gone'}
end
