-- Puts a document in the place of the version that was read.
-- KEYS: the document, the count of changes.
-- ARGV: the version that was read, or '' where there was none; the document; its version; what is announced; where.
local version = redis.call('HGET', KEYS[1], 'v')
if ARGV[1] == '' then
  if redis.call('EXISTS', KEYS[1]) == 1 then
    return 'exists'
  end
elseif not version then
  return redis.call('EXISTS', KEYS[1]) == 1 and 'corrupt' or 'missing'
elseif version ~= ARGV[1] then
  return 'conflict'
end
-- First, as it fails where something else has the key: then nothing is written.
local number = redis.call('INCR', KEYS[2])
redis.call('HSET', KEYS[1], 'r', ARGV[2], 'v', ARGV[3])
-- Without the right to publish the count alone tells the others.
redis.pcall('PUBLISH', ARGV[5], string.format('%.0f ', number) .. ARGV[4])
return 'ok'
