-- Adds a key unless its digest or its id is taken.
-- KEYS: the record, its id, its tenant's keys, the count of changes.
-- ARGV: the digest, the record, its expiry and its revocation or '', the channel.
redis.call('LLEN', KEYS[3])
if redis.call('EXISTS', KEYS[1], KEYS[2]) > 0 then
  return 'exists'
end
-- First, as it fails where something else has the key: then nothing is written.
local number = redis.call('INCR', KEYS[4])
redis.call('HSET', KEYS[1], 'r', ARGV[2], 'v', '1', 'd', ARGV[1])
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 'e', ARGV[3])
end
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[1], 'x', ARGV[4])
end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('RPUSH', KEYS[3], ARGV[1])
-- Without the right to publish the count alone tells the others.
redis.pcall('PUBLISH', ARGV[5], string.format('%.0f k ', number) .. ARGV[1] .. ' 1')
return 'ok'
