-- Replaces the current token of a session by one that its holder is about to be given.
-- KEYS: record, index, successor.
local sid, g, hash = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local grace, idleTTL, reauthenticated, now = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], clock(ARGV[7])

local r = read(KEYS[1])
if not r[GEN] or r[STOPPED] or now >= tonumber(r[IDLE]) then return {'gone'} end
if r[GEN] == text(g) and r[HASH] == hash then return answer('turned', '', r) end -- this very call, sent again
if r[GEN] ~= text(g - 1) then return {'conflict'} end

local prev, idle = r[HASH], math.min(now + idleTTL, tonumber(r[EXPIRES]))
r[GEN], r[HASH], r[USED], r[IDLE] = text(g), hash, text(now), text(idle)
if reauthenticated == '1' then r[AUTH] = r[USED] end
redis.call('HSET', KEYS[1], 'gen', r[GEN], 'hash', hash, 'prev', prev, 'replay', text(now + grace),
  'auth', r[AUTH], 'used', r[USED], 'idle', r[IDLE])
redis.call('DEL', KEYS[3]) -- nobody can seal for the holder of a token that was not shown
keep(KEYS[1], KEYS[2], sid, idle, now)
return answer('turned', '', r)
