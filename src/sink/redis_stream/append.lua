-- Appends a batch of events to a stream, once.
-- KEYS: the stream, the token of the batch.
-- ARGV: the seconds that the token lives, the most entries that the stream may have, then the events.
-- Returns 0 when the batch was appended before, 1 when it is now, 2 when the stream is full.
local stream, token = KEYS[1], KEYS[2]
local n_new = #ARGV - 2
local most = tonumber(ARGV[2])

if redis.call('EXISTS', token) == 1 then
  return 0
end

-- Whether one entry's id comes before another's: both are milliseconds, a dash and a number.
local function is_before(one, other)
  local millis, sequence = string.match(one, '(%d+)-(%d+)')
  local other_millis, other_sequence = string.match(other, '(%d+)-(%d+)')
  millis, other_millis = tonumber(millis), tonumber(other_millis)
  if millis ~= other_millis then
    return millis < other_millis
  end
  return tonumber(sequence) < tonumber(other_sequence)
end

-- The oldest entry that a group has not acknowledged, or the last one it has: nothing before it is needed by any group.
-- Nil without a group: then nobody has read anything.
local function oldest_needed()
  local oldest = nil
  for _, fields in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local group = {}
    for i = 1, #fields, 2 do
      group[fields[i]] = fields[i + 1]
    end
    local needed = group['last-delivered-id']
    if group['pending'] > 0 then
      needed = redis.call('XPENDING', stream, group['name'])[2]
    end
    if oldest == nil or is_before(needed, oldest) then
      oldest = needed
    end
  end
  return oldest
end

local length = redis.call('XLEN', stream)
if length > 0 then
  local oldest = oldest_needed()
  if oldest ~= nil then
    length = length - redis.call('XTRIM', stream, 'MINID', '~', oldest)
    if length + n_new > most then
      length = length - redis.call('XTRIM', stream, 'MINID', '=', oldest)
    end
  end
end
if length + n_new > most then
  return 2
end

for i = 3, #ARGV do
  redis.call('XADD', stream, '*', 'event', ARGV[i])
end
redis.call('SET', token, '1', 'EX', ARGV[1])
return 1
