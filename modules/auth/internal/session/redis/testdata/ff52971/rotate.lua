-- Exchanges a refresh token. doc.go of package session has the table of cases.
-- KEYS: record, index, successor, marks.
local sid, g, presented, successor, sealed = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local grace, idleTTL, agent, ip, markTTL = tonumber(ARGV[6]), ARGV[7], ARGV[8], ARGV[9], ARGV[10]

local r = read(KEYS[1])
if not r[GEN] then return {'gone'} end
if r[STOPPED] then return {'reused', r} end
local now = clock(ARGV[11])
if now >= tonumber(r[IDLE]) then return {'gone'} end
local gen = tonumber(r[GEN])

-- The current token, or one ahead of a server that missed rotations before a fail-over.
if g > gen or (g == gen and presented == r[HASH]) then
  local idle = math.min(now + idleTTL, tonumber(r[EXPIRES]))
  redis.call('HSET', KEYS[1], 'gen', g + 1, 'hash', successor, 'prev', presented, 'replay', now + grace,
    'agent', agent, 'ip', ip, 'used', now, 'idle', idle)
  redis.call('PEXPIRE', KEYS[1], idle - now)
  if grace > 0 then
    -- Dropped after the window: then not even the old token and this server together give
    -- the current one. The second more makes sure it is there as long as it is asked for.
    redis.call('SET', KEYS[3], sealed, 'PX', grace + 1000)
  else
    redis.call('DEL', KEYS[3])
  end
  r[GEN], r[HASH], r[AGENT], r[IP], r[USED], r[IDLE] = g + 1, successor, agent, ip, now, idle
  return {'turned', r}
end

if g == gen - 1 and presented == r[PREV] then
  if r[HASH] == successor then return {'turned', r} end -- this very call, sent again
  if now < tonumber(r[REPLAY]) then
    local kept = redis.call('GET', KEYS[3])
    if not kept then return {'gone'} end
    return {'replayed', r, kept}
  end
end

redis.call('HSET', KEYS[1], 'stopped', now, 'sgen', g, 'sagent', agent, 'sip', ip)
redis.call('PEXPIRE', KEYS[1], markTTL)
redis.call('ZREM', KEYS[2], sid)
redis.call('DEL', KEYS[3])
redis.call('SADD', KEYS[4], sid)
redis.call('PEXPIRE', KEYS[4], markTTL)
return {'reused', r}
