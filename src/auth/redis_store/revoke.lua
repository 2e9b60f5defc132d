-- Ends a key for good, and answers its record; the first time stays.
-- KEYS: the record, the count of changes.
-- ARGV: the digest, the time, the channel.
local version, revoked = unpack(redis.call('HMGET', KEYS[1], 'v', 'x'))
if version and string.match(version, '^%d+$') and not revoked then
  -- First, as they fail where something else has the key: then nothing is written.
  version = redis.call('HINCRBY', KEYS[1], 'v', 1)
  local number = redis.call('INCR', KEYS[2])
  redis.call('HSET', KEYS[1], 'x', ARGV[2])
  redis.pcall('PUBLISH', ARGV[3], string.format('%.0f k %s %.0f', number, ARGV[1], version))
end
return redis.call('HMGET', KEYS[1], 'r', 'v', 'e', 'x', 'u', 'd')
