-- Begins every script. Times are milliseconds since 1970 by this server's clock; numbers go
-- back to the store as whole-number text, never in Lua's exponent form.

local function text(n) return string.format('%.0f', n) end

-- skew is zero but in tests.
local function clock(skew)
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000) + tonumber(skew)
end

-- The record and its place in the index live until the idle expiry, the index as long as its
-- longest-lived member.
local function keep(record, index, sid, idle, now)
  local ttl = idle - now
  redis.call('PEXPIRE', record, text(ttl))
  redis.call('ZADD', index, text(idle), sid)
  if redis.call('PTTL', index) < ttl then redis.call('PEXPIRE', index, text(ttl)) end
end

-- What the store reads of a record, in its order; then what only the scripts need.
local function read(record)
  return redis.call('HMGET', record, 'gen', 'hash', 'epoch', 'device', 'agent', 'ip', 'auth', 'created', 'used',
    'expires', 'idle', 'stopped', 'prev', 'replay')
end
local GEN, HASH, EPOCH, DEVICE, AGENT, IP, AUTH, CREATED, USED, EXPIRES, IDLE, STOPPED, PREV, REPLAY =
  1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14

local function answer(verdict, sealed, r)
  return {verdict, sealed, r[GEN], r[HASH], r[EPOCH], r[DEVICE], r[AGENT], r[IP], r[AUTH], r[CREATED], r[USED], r[EXPIRES], r[IDLE]}
end
