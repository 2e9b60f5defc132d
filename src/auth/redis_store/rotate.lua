-- Adds a successor of a key, and bounds the key's own life.
-- KEYS: the old record, the new one, its id, its tenant's keys, the count of changes.
-- ARGV: the old digest, now, the old key's end, the new digest, record, expiry and revocation or '', the channel.
-- Times are of 18 digits, so that they compare as texts: a number of Lua is not exact at the end of time.
local version, expiry, revoked = unpack(redis.call('HMGET', KEYS[1], 'v', 'e', 'x'))
redis.call('LLEN', KEYS[4])
if not version then
  return 'corrupt'
end
if not string.match(version, '^%d+$') or (expiry and #expiry ~= 18) then
  return 'corrupt'
end
if revoked or (expiry and expiry <= ARGV[2]) then
  return 'unusable'
end
if redis.call('EXISTS', KEYS[2], KEYS[3]) > 0 then
  return 'exists'
end
-- First, as they fail where something else has the key: then nothing is written.
version = redis.call('HINCRBY', KEYS[1], 'v', 1)
local number = redis.call('INCRBY', KEYS[5], 2)
if not expiry or ARGV[3] < expiry then
  redis.call('HSET', KEYS[1], 'e', ARGV[3])
end
redis.call('HSET', KEYS[2], 'r', ARGV[5], 'v', '1', 'd', ARGV[4])
if ARGV[6] ~= '' then
  redis.call('HSET', KEYS[2], 'e', ARGV[6])
end
if ARGV[7] ~= '' then
  redis.call('HSET', KEYS[2], 'x', ARGV[7])
end
redis.call('SET', KEYS[3], ARGV[4])
redis.call('RPUSH', KEYS[4], ARGV[4])
redis.pcall('PUBLISH', ARGV[8], string.format('%.0f k %s %.0f', number - 1, ARGV[1], version))
redis.pcall('PUBLISH', ARGV[8], string.format('%.0f k %s 1', number, ARGV[4]))
return version
