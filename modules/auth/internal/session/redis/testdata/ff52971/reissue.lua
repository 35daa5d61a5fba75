-- Replaces the current token of a session by one that its holder is about to be given.
-- KEYS: record, successor.
local g, hash, grace, idleTTL, reauthenticated, now = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5], clock(ARGV[6])
local sealed = ARGV[7]

local r = read(KEYS[1])
if not r[GEN] or r[STOPPED] or now >= tonumber(r[IDLE]) then return {'gone'} end
local gen = tonumber(r[GEN])
if gen == g and r[HASH] == hash then return {'turned', r} end -- this very call, sent again
if gen ~= g - 1 then return {'conflict'} end

local prev, idle = r[HASH], math.min(now + idleTTL, tonumber(r[EXPIRES]))
r[GEN], r[HASH], r[USED], r[IDLE] = g, hash, now, idle
if reauthenticated == '1' then r[AUTH] = now end
redis.call('HSET', KEYS[1], 'gen', g, 'hash', hash, 'prev', prev, 'replay', now + grace, 'auth', r[AUTH], 'used', now, 'idle', idle)
redis.call('PEXPIRE', KEYS[1], idle - now)
if grace > 0 and #sealed > 0 then
  redis.call('SET', KEYS[2], sealed, 'PX', grace + 1000)
else
  redis.call('DEL', KEYS[2])
end
return {'turned', r}
