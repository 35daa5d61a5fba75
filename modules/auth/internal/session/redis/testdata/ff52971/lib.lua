-- Begins every script. Times are whole milliseconds since 1970 by this server's clock, which
-- Lua's numbers hold exactly. skew is zero but in tests.

local function clock(skew)
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000) + skew
end

-- What the store reads of a record, in its order; then what only the scripts need.
local function read(record)
  return redis.call('HMGET', record, 'gen', 'hash', 'epoch', 'device', 'agent', 'ip', 'auth', 'created', 'used',
    'expires', 'idle', 'stopped', 'prev', 'replay')
end
local GEN, HASH, AGENT, IP, AUTH, USED, EXPIRES, IDLE, STOPPED, PREV, REPLAY = 1, 2, 5, 6, 7, 9, 10, 11, 12, 13, 14
