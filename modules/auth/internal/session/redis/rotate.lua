-- Exchanges a refresh token. doc.go of package session has the table of cases.
-- KEYS: record, index, successor, stopped sessions, marks. The links are in the same slot.
local sid, g, presented, successor, sealed = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local grace, idleTTL, agent, ip, markTTL = tonumber(ARGV[6]), ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local base, most = ARGV[12], tonumber(ARGV[13])

local r = read(KEYS[1])
if not r[GEN] then return gone(KEYS[2]) end
if r[STOPPED] then return {'reused', r} end
local now = clock(ARGV[11])
if now >= tonumber(r[IDLE]) then return gone(KEYS[2]) end
local gen = tonumber(r[GEN])

-- The current token, or one ahead of a server that has missed rotations before a fail-over.
if g > gen or (g == gen and presented == r[HASH]) then
  local idle = math.min(now + idleTTL, tonumber(r[EXPIRES]))
  local at, next = string.format('%.0f', now), string.format('%.0f', g + 1)
  redis.call('HSET', KEYS[1], 'gen', next, 'hash', successor, 'prev', presented, 'replay', now + grace, 'linked', next,
    'agent', agent, 'ip', ip, 'used', at, 'idle', idle)
  redis.call('PEXPIRE', KEYS[1], idle - now)
  keep(r, KEYS[3], base, KEYS[5], g, presented, sealed, grace, now, at, most)
  r[GEN], r[HASH], r[AGENT], r[IP], r[USED], r[IDLE] = g + 1, successor, agent, ip, now, idle
  return {'rotated', r}
end

-- A replaced token: depending on its own window, it gets the newest one or is reuse.
local function replaced()
  local linked = tonumber(r[LINKED] or 0)
  local l
  if g == gen - 1 then
    if presented == r[PREV] and r[HASH] == successor then return {'rotated', r} end -- this very call, repeated
    if r[PREV] ~= '' then l = {at = tonumber(r[USED]), ends = tonumber(r[REPLAY]), hash = r[PREV]} end
  else
    l = getLink(base, g)
  end
  if not l then
    -- Servers of a previous release have rotated since it was current.
    if g >= linked and g <= gen - 2 and now < tonumber(r[REPLAY]) then return {'superseded', r} end
    local above = redis.call('ZRANGEBYSCORE', KEYS[5], g, '+inf', 'LIMIT', 0, 1)[1]
    if above and now < tonumber(above:match(':(%d+)$')) then return {'superseded', r} end
    return nil
  end
  if l.hash ~= presented or now >= l.ends then return nil end
  -- A clock that was ahead wrote this, and nobody knows when.
  if l.at - now > l.ends - l.at then return {'superseded', r} end
  local reply = {'replayed', r}
  for i = g, gen - 2 do
    local next = #reply < most + 2 and getLink(base, i)
    if not next then return {'superseded', r} end
    reply[#reply + 1] = next.sealed
  end
  local newest = redis.call('GET', KEYS[3])
  if not newest then return {'superseded', r} end
  reply[#reply + 1] = newest
  return reply
end
if g < gen then
  local answer = replaced()
  if answer then return answer end
end

redis.call('HSET', KEYS[1], 'stopped', now, 'sgen', g, 'sagent', agent, 'sip', ip)
redis.call('PEXPIRE', KEYS[1], markTTL)
redis.call('ZREM', KEYS[2], sid)
redis.call('DEL', KEYS[3], KEYS[5])
for i = math.max(1, gen - most - PORTION), gen - 1 do redis.call('DEL', base .. i) end
redis.call('SADD', KEYS[4], sid)
redis.call('PEXPIRE', KEYS[4], markTTL)
return {'reused', r}
