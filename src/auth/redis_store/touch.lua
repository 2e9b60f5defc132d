-- Notes when keys were last used; the latest time stays.
-- KEYS: the records. ARGV: a time of 18 digits for each.
for place, key in ipairs(KEYS) do
  local version, used = unpack(redis.call('HMGET', key, 'v', 'u'))
  if version and (not used or used < ARGV[place]) then
    redis.call('HSET', key, 'u', ARGV[place])
  end
end
return 'ok'
