-- Begins a session, and names those above the user's limit.
-- KEYS: record, index. The records of the other members are in the same slot.
local sid, hash, epoch, device, agent, ip = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local maxAge, idleTTL, max, reject, records = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]), ARGV[10], ARGV[11]
local now = clock(ARGV[12])
local expires = now + maxAge
local idle = math.min(now + idleTTL, expires)

redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', text(now))
redis.call('ZREM', KEYS[2], sid) -- this call sent again must not count against itself
local over = redis.call('ZCARD', KEYS[2]) + 1 - max
if max > 0 and over > 0 and reject == '1' then return {'full'} end

local at = text(now)
redis.call('HSET', KEYS[1], 'gen', '1', 'hash', hash, 'epoch', epoch, 'device', device, 'agent', agent, 'ip', ip,
  'auth', at, 'created', at, 'used', at, 'expires', text(expires), 'idle', text(idle))
local out = answer('created', '', read(KEYS[1]))

if max > 0 and over > 0 then
  local others = {}
  for _, other in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    -- A record that is missing was evicted: it counts as the oldest, and deleting it tidies up.
    others[#others + 1] = {sid = other, used = tonumber(redis.call('HGET', records .. other, 'used') or 0)}
  end
  table.sort(others, function(a, b)
    if a.used ~= b.used then return a.used < b.used end
    return a.sid < b.sid
  end)
  for i = 1, over do out[#out + 1] = others[i].sid end
end
keep(KEYS[1], KEYS[2], sid, idle, now)
return out
