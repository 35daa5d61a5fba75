-- The rules of rules.go, for counters in Redis. The settings come as the table R before
-- this text. One call decides one thing, in one step, by Redis' own clock.
--
-- ARGV: operation, time to use instead of the clock (0 but in tests);
--       for "begin": 1 for a stranger, whatever is known of the address;
--       for "finish": tier, outcome, and the owner to whom a success makes the address known
-- KEYS: account, pair, device, address, prefix, global, known (the counter of the owner)
--       (for "take" only: the counter of registrations)
-- A key that ends in ":none" stands for a counter that the attempt does not have.
-- A record is a hash: f failed, p pending, t written, u until, m mark, o owner, c counted.

local LEASE, UNIT = 120000, 60000
local DEVICE, PAIR, COMMON = 1, 2, 3
local FAILED, SUCCEEDED = 0, 1

local now = tonumber(ARGV[2])
if now == 0 then
  local clock = redis.call('TIME')
  now = clock[1] * 1000 + math.floor(clock[2] / 1000)
end

local function has(key) return string.sub(key, -5) ~= ':none' end

local function get(key)
  local v = redis.call('HMGET', key, 'f', 'p', 't', 'u', 'm', 'o', 'c')
  return {
    failed = tonumber(v[1] or 0), pending = tonumber(v[2] or 0), at = tonumber(v[3] or 0),
    wait_until = tonumber(v[4] or 0), mark = tonumber(v[5] or 0), owner = v[6] or '', counted = tonumber(v[7] or 0),
  }
end

local function put(key, rec, life)
  if life <= 0 then
    redis.call('DEL', key)
    return
  end
  redis.call('HSET', key, 'f', rec.failed, 'p', rec.pending, 't', now, 'u', rec.wait_until, 'm', rec.mark,
    'o', rec.owner or '', 'c', rec.counted or 0)
  redis.call('PEXPIRE', key, life)
end

-- Tiers: counters of consecutive failures.

local function keep(rule, rec)
  return math.min(math.max(1, rec.failed) * rule.forget, rule.memory)
end

local function delay(rule, failures)
  if failures < rule.free then return 0 end
  if rule.max > 0 and failures >= rule.max then return rule.lock end
  return math.min(rule.base * 2 ^ math.min(failures - rule.free, 30), rule.longest)
end

local function streak(key, rule, cleared)
  local rec = get(key)
  cleared = cleared or rec.mark
  if rec.wait_until > now + delay(rule, rec.failed) + LEASE then rec.wait_until = 0 end
  if cleared > now then cleared = 0 end
  local wiped = rec.at <= cleared
  if wiped or rec.at + keep(rule, rec) < now then
    rec.failed, rec.pending, rec.wait_until = 0, 0, 0
    if wiped or rec.mark <= now then rec.counted = 0 end
  end
  if rec.pending > 0 and (rec.at + LEASE < now or rec.at > now + LEASE) then
    rec.failed, rec.pending = rec.failed + rec.pending, 0
    rec.wait_until = math.min(rec.at, now) + delay(rule, rec.failed)
  end
  return rec
end

local function put_streak(key, rule, rec)
  local life = 0
  if rec.failed > 0 or rec.pending > 0 then
    life = math.max(keep(rule, rec), rec.wait_until - now)
  end
  if rec.mark > 0 then life = math.max(life, rec.mark + rule.cleared - now) end
  put(key, rec, life)
end

local function finish(rule, rec, how)
  rec.pending = math.max(0, rec.pending - 1)
  if how == SUCCEEDED then
    rec.failed, rec.wait_until = 0, 0
  elseif how == FAILED then
    local before = rec.failed
    rec.failed = before + 1
    local d = delay(rule, rec.failed)
    if d > 0 then rec.wait_until = now + d end
    return (before < rule.free and rec.failed >= rule.free) or (before < rule.max and rec.failed >= rule.max)
  end
  return false
end

-- The failures of all known devices and addresses of an owner together.

local function has_room(rule, rec) return rec.failed + rec.pending < rule.free end

local function reserve_known(key, rec, cleared)
  local known = streak(key, R.known, cleared)
  local room = R.known.free
  if rec.counted + rec.pending > 0 then room = math.floor((room + 1) / 2) end
  if known.failed + known.pending >= room then return false end
  known.pending = known.pending + 1
  put_streak(key, R.known, known)
  return true
end

local function count(known, rec, how)
  if how == FAILED then
    known.failed = known.failed + 1
    rec.counted = rec.counted + 1
  elseif how == SUCCEEDED then
    known.failed = math.max(0, known.failed - rec.counted)
    rec.counted = 0
  end
end

local function finish_known(key, rec, how, cleared)
  local known = streak(key, R.known, cleared)
  known.pending = math.max(0, known.pending - 1)
  count(known, rec, how)
  put_streak(key, R.known, known)
end

-- Buckets: failures over time.

local function leak(level, past, rate)
  if past > math.floor(level / rate) then return 0 end
  return level - past * rate
end

local function bucket(key, rule)
  local rec = get(key)
  if rec.at > now + LEASE then rec.failed, rec.pending = 0, 0 end
  local past = math.max(0, now - rec.at)
  rec.failed = leak(rec.failed, past, rule.per_minute)
  rec.pending = leak(rec.pending, past, rule.drain)
  return rec
end

local function put_bucket(key, rule, rec)
  local life = math.ceil(rec.failed / rule.per_minute)
  if rec.pending > 0 then life = math.max(life, LEASE) end
  put(key, rec, life)
end

-- Refusals. The longest wins; -1 is none, and 0 that all room is reserved.

local refused_by, refused_for = 0, -1

local function refuse(limit, wait)
  if wait > refused_for then refused_by, refused_for = limit, wait end
end

local function room_in_streak(rule, rec, limit)
  if rec.wait_until > now then
    refuse(limit, rec.wait_until - now)
  elseif rec.pending >= math.max(1, rule.free - rec.failed) then
    refuse(limit, 0)
  end
end

local function room_in_bucket(rule, rec, limit)
  local over = rec.failed + UNIT - rule.burst * UNIT
  if over > 0 then
    refuse(limit, math.ceil(over / rule.per_minute))
  elseif over + rec.pending > 0 then
    refuse(limit, 0)
  end
end

local operation = {}

function operation.begin()
  local account = streak(KEYS[1], R.account)
  if has(KEYS[3]) then
    local device = streak(KEYS[3], R.device, account.mark)
    if has_room(R.device, device) and reserve_known(KEYS[7], device, account.mark) then
      device.pending = device.pending + 1
      put_streak(KEYS[3], R.device, device)
      return {DEVICE, 0, 0, string.sub(KEYS[7], #R.known_prefix + 1)}
    end
  end
  local pair = streak(KEYS[2], R.pair, account.mark)
  if ARGV[3] ~= '1' and now < pair.mark and pair.mark <= now + R.remember and pair.owner ~= '' and has_room(R.pair, pair)
    and reserve_known(R.known_prefix .. pair.owner, pair, account.mark) then
    pair.pending = pair.pending + 1
    put_streak(KEYS[2], R.pair, pair)
    return {PAIR, 0, 0, pair.owner}
  end

  local address, prefix = bucket(KEYS[4], R.address), nil
  room_in_streak(R.pair, pair, 1)
  room_in_streak(R.account, account, 2)
  room_in_bucket(R.address, address, 3)
  if has(KEYS[5]) then
    prefix = bucket(KEYS[5], R.prefix)
    room_in_bucket(R.prefix, prefix, 4)
  end
  room_in_bucket(R.global, bucket(KEYS[6], R.global), 5)
  if refused_for >= 0 then return {0, refused_by, refused_for} end

  pair.pending = pair.pending + 1
  account.pending = account.pending + 1
  address.pending = address.pending + UNIT
  put_streak(KEYS[2], R.pair, pair)
  put_streak(KEYS[1], R.account, account)
  put_bucket(KEYS[4], R.address, address)
  if prefix then
    prefix.pending = prefix.pending + UNIT
    put_bucket(KEYS[5], R.prefix, prefix)
  end
  return {COMMON, 0, 0}
end

local function fill(key, rule, of, how)
  local rec = bucket(key, rule)
  if of == COMMON then rec.pending = math.max(0, rec.pending - UNIT) end
  if how == FAILED then rec.failed = rec.failed + UNIT end
  put_bucket(key, rule, rec)
end

function operation.finish()
  local of, how = tonumber(ARGV[3]), tonumber(ARGV[4])
  local account = streak(KEYS[1], R.account)
  local pair = streak(KEYS[2], R.pair, account.mark)
  local crossed, wait = false, 0

  if of == DEVICE then
    local device = streak(KEYS[3], R.device, account.mark)
    finish_known(KEYS[7], device, how, account.mark)
    finish(R.device, device, how)
    put_streak(KEYS[3], R.device, device)
  end
  if of == PAIR then
    finish_known(KEYS[7], pair, how, account.mark)
  elseif of == COMMON and how == SUCCEEDED and pair.counted > 0 then
    local key = R.known_prefix .. pair.owner
    local known = streak(key, R.known, account.mark)
    count(known, pair, how)
    put_streak(key, R.known, known)
  end
  if of == PAIR or of == COMMON then
    crossed = finish(R.pair, pair, how)
    wait = math.max(0, pair.wait_until - now)
    fill(KEYS[4], R.address, of, how)
    if has(KEYS[5]) then fill(KEYS[5], R.prefix, of, how) end
    if how == FAILED then
      local global = bucket(KEYS[6], R.global)
      global.failed = global.failed + UNIT
      put_bucket(KEYS[6], R.global, global)
    end
  end
  if of == COMMON then
    crossed = finish(R.account, account, how) or crossed
    wait = math.max(wait, account.wait_until - now)
    put_streak(KEYS[1], R.account, account)
  end
  if how == SUCCEEDED then
    pair.mark = now + R.remember
    if pair.owner ~= ARGV[5] then pair.owner, pair.counted = ARGV[5], 0 end
  end
  if of ~= DEVICE or how == SUCCEEDED then put_streak(KEYS[2], R.pair, pair) end
  if crossed then return {1, wait} end
  return {0, wait}
end

function operation.take()
  local rec = bucket(KEYS[1], R.register)
  room_in_bucket(R.register, rec, 3)
  if refused_for >= 0 then return {refused_for} end
  rec.failed = rec.failed + UNIT
  put_bucket(KEYS[1], R.register, rec)
  return {0}
end

function operation.clear()
  put_streak(KEYS[1], R.account, {failed = 0, pending = 0, wait_until = 0, mark = now})
  return {}
end

function operation.state()
  local account = streak(KEYS[1], R.account)
  return {account.failed, math.max(0, account.wait_until - now)}
end

return operation[ARGV[1]]()
