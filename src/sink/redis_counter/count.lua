-- Adds one batch of a tenant to the counters of its days, once.
-- KEYS: the batches that were written, then counters.
-- ARGV: the writer, the batch's token of 16 digits, the lifetime of KEYS[1] in milliseconds, that of counters; then for
-- each counter how many fields it has, and name and amount of each.
-- Answers how many fields could not be added to, because something else stands there.
local ring = redis.call('HGET', KEYS[1], ARGV[1]) or ''
for place = 1, #ring, 16 do
  if string.sub(ring, place, place + 15) == ARGV[2] then
    return -1
  end
end
-- First, as it fails where something else has the key: then nothing is counted. The last 16 batches are known.
redis.call('HSET', KEYS[1], ARGV[1], string.sub(ring .. ARGV[2], -256))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local n_bad, place = 0, 5
for counter = 2, #KEYS do
  local n_fields = tonumber(ARGV[place])
  place = place + 1
  for _ = 1, n_fields do
    local added = redis.pcall('HINCRBY', KEYS[counter], ARGV[place], ARGV[place + 1])
    if type(added) == 'table' then
      n_bad = n_bad + 1
    end
    place = place + 2
  end
  redis.call('PEXPIRE', KEYS[counter], ARGV[4])
end
return n_bad
