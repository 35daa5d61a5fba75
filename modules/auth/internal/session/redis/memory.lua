-- Notes that the store is seen, and since when without a gap. KEYS: memory.
local now, gap, memorable, ttl = clock(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]

local m = redis.call('HMGET', KEYS[1], 'since', 'seen', 'emptied')
local since, emptied = tonumber(m[1] or nil), m[3]
if not since then
  since, emptied = now, '1'
elseif math.abs(now - tonumber(m[2])) > gap then
  -- Nobody has looked for a while: it may have been put back to what it was before that.
  if now - since > memorable then emptied = '0' end
  since = now
end
redis.call('HSET', KEYS[1], 'since', string.format('%.0f', since), 'seen', string.format('%.0f', now), 'emptied', emptied)
redis.call('PEXPIRE', KEYS[1], ttl)
return {string.format('%.0f', since), emptied}
