-- Ends consumers of a group that have nothing unacknowledged: what one still has would be lost with it.
-- KEYS: the stream. ARGV: the group, the consumer that leaves or '', the milliseconds after which others are dead.
-- Returns how many were ended.
local stream, group, own, dead = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local n_ended = 0
for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local consumer = {}
  for i = 1, #fields, 2 do
    consumer[fields[i]] = fields[i + 1]
  end
  if consumer['pending'] == 0 and (consumer['name'] == own or consumer['idle'] > dead) then
    redis.call('XGROUP', 'DELCONSUMER', stream, group, consumer['name'])
    n_ended = n_ended + 1
  end
end
return n_ended
