-- Reads many records.
-- KEYS: the records.
local records = {}
for place, key in ipairs(KEYS) do
  records[place] = redis.call('HMGET', key, 'r', 'v', 'e', 'x', 'u', 'd')
end
return records
