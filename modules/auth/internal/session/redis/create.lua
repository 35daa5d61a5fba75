-- Begins a session, and returns the sessions above the user's limit.
-- KEYS: record, index. The records of the other members are in the same slot.
local sid, hash, epoch, device, agent, ip = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local maxAge, idleTTL, max, reject, records = ARGV[7], ARGV[8], tonumber(ARGV[9]), ARGV[10], ARGV[11]
local now = clock(ARGV[12])
local expires = now + maxAge
local idle = math.min(now + idleTTL, expires)

-- A full Redis refuses the first write of a script if it takes memory, and none after a first one that does not.
redis.call('ZADD', KEYS[2], 'XX', expires, sid) -- of a repeated call; it is removed at once
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
redis.call('ZREM', KEYS[2], sid) -- a repeated call must not count against itself
local live = {}
if max > 0 and redis.call('ZCARD', KEYS[2]) >= max then
  for _, other in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    local r = redis.call('HMGET', records .. other, 'used', 'idle', 'gen', 'recorded')
    if r[2] and now < tonumber(r[2]) then
      live[#live + 1] = {sid = other, used = tonumber(r[1]), tentative = r[4] and tonumber(r[3]) == 1}
    else
      redis.call('ZREM', KEYS[2], other) -- idle too long, or evicted
    end
  end
end
local over = #live + 1 - max
if max > 0 and over > 0 and reject == '1' then return {'full'} end

-- The fields that a rotation changes come first, because a small hash is searched from the
-- front.
redis.call('HSET', KEYS[1], 'gen', 1, 'hash', hash, 'prev', '', 'replay', 0, 'linked', 1, 'agent', agent, 'ip', ip,
  'used', now, 'idle', idle, 'epoch', epoch, 'device', device, 'auth', now, 'created', now, 'expires', expires,
  'recorded', 1)
redis.call('PEXPIRE', KEYS[1], idle - now)
redis.call('ZADD', KEYS[2], expires, sid)
-- The absolute expiry never moves, so the index need not move until a session ends: it outlives
-- each member.
if redis.call('PTTL', KEYS[2]) < expires - now then redis.call('PEXPIRE', KEYS[2], expires - now) end

local out = {'created', read(KEYS[1])}
if max > 0 and over > 0 then
  table.sort(live, function(a, b)
    if a.used ~= b.used then return a.used < b.used end
    return a.sid < b.sid
  end)
  for i = 1, over do out[i + 2] = live[i].sid .. (live[i].tentative and '?' or '') end
end
return out
