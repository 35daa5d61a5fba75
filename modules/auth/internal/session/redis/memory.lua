-- Records that somebody looks at the store, and since when without a gap. KEYS: memory.
local now, gap, memorable, ttl = clock(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]

-- A server that replaces another or restarts has its own history, which may lack the latest writes.
-- Without the right to ask, nobody knows.
local info = redis.pcall('INFO', 'replication')
local history = type(info) == 'string' and info:match('master_replid:(%x+)') or ''

local m = redis.call('HMGET', KEYS[1], 'since', 'seen', 'emptied', 'history')
local since, emptied, former = tonumber(m[1] or nil), m[3], m[4] or ''
local replaced = history ~= '' and former ~= '' and history ~= former
if not since then
  since, emptied = now, '1'
elseif replaced or math.abs(now - tonumber(m[2])) > gap then
  -- Nobody has looked for a while, or only at another server: this one may have been set back to an
  -- older state meanwhile.
  if now - since > memorable then emptied = '0' end
  since = now
end
redis.call('HSET', KEYS[1], 'since', string.format('%.0f', since), 'seen', string.format('%.0f', now), 'emptied', emptied,
  'history', history)
redis.call('PEXPIRE', KEYS[1], ttl)
return {string.format('%.0f', since), emptied}
