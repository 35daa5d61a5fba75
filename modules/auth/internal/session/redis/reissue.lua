-- Replaces the current token of a session by one that its holder is about to get.
-- KEYS: record, successor, marks. The links are in the same slot.
local g, hash, grace, idleTTL, reauthenticated, now = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5], clock(ARGV[6])
local sealed, base, most = ARGV[7], ARGV[8], tonumber(ARGV[9])

local r = read(KEYS[1])
if not r[GEN] or r[STOPPED] or now >= tonumber(r[IDLE]) then return gone(KEYS[3]) end
local gen = tonumber(r[GEN])
if gen == g and r[HASH] == hash then return {'rotated', r} end -- this very call, repeated
if gen ~= g - 1 then return {'conflict'} end

local at, prev, idle = string.format('%.0f', now), r[HASH], math.min(now + idleTTL, tonumber(r[EXPIRES]))
local auth = reauthenticated == '1' and now or r[AUTH]
redis.call('HSET', KEYS[1], 'gen', g, 'hash', hash, 'prev', prev, 'replay', now + grace, 'linked', g, 'auth', auth, 'used', now, 'idle', idle)
redis.call('PEXPIRE', KEYS[1], idle - now)
if #sealed == 0 then grace = 0 end
keep(r, KEYS[2], base, KEYS[3], gen, prev, sealed, grace, now, at, most)
r[GEN], r[HASH], r[AUTH], r[USED], r[IDLE] = g, hash, auth, now, idle
return {'rotated', r}
