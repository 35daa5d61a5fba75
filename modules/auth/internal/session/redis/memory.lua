-- Notes that the store is seen, and since when without a gap. KEYS: memory.
local now, gap, memorable, ttl = clock(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]

-- A server that takes the place of another, or starts again, has a history of its own: what came last may not be
-- in it. Without the right to ask, that is not known.
local info = redis.pcall('INFO', 'replication')
local history = type(info) == 'string' and info:match('master_replid:(%x+)') or ''

local m = redis.call('HMGET', KEYS[1], 'since', 'seen', 'emptied', 'history')
local since, emptied, former = tonumber(m[1] or nil), m[3], m[4] or ''
local replaced = history ~= '' and former ~= '' and history ~= former
if not since then
  since, emptied = now, '1'
elseif replaced or math.abs(now - tonumber(m[2])) > gap then
  -- Nobody has looked for a while, or only at another server: it may have been put back to what it was before that.
  if now - since > memorable then emptied = '0' end
  since = now
end
redis.call('HSET', KEYS[1], 'since', string.format('%.0f', since), 'seen', string.format('%.0f', now), 'emptied', emptied,
  'history', history)
redis.call('PEXPIRE', KEYS[1], ttl)
return {string.format('%.0f', since), emptied}
