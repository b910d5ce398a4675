"""Plots in the oldest shapes: chains, swaps, riddles, echoes, false alarms, envy; each a function that tells one"
" tale."""

from __future__ import annotations

from llamita.data.tales_grammar import Tale, table
from llamita.data.tales_world import begin, close_tale, open_tale, scenery

# what one brings, what it does for the soup
_INGREDIENTS = table("""
two carrots / Now it was orange
an onion / Now it smelled good
a handful of beans / Now it was thick
a cabbage / Now there was enough for everyone
some salt / Now it tasted of something
a bunch of parsley / Now there was green in it
three potatoes / Now it was a real meal
a piece of butter / Now it shone like gold
a little cream / Now it was as smooth as silk
a slice of pumpkin / Now it was sweet
""")


def soup_for_all(tale: Tale) -> None:
    """Nobody has enough for a meal; a pot of hot water draws each one's little, and in the end all eat together."""
    begin(tale, season=tale.pick(("autumn", "winter")))
    first, second, third = tale.sample(_INGREDIENTS, 3)
    tale.let(first=first[0], second=second[0], third=third[0])
    open_tale(tale)
    tale.one_of(
        "It had been a poor [harvest|year], and nobody had much to eat. {Day}, {h.first} had only a pot and some"
        " water.",
        "{Day}, everyone was hungry. {h.First} looked into the cupboard. There was nothing in it but a big, empty pot.",
        "{Day}, {h.first} was hungry, and there was only [one round stone|one dry leaf|one old spoon] in the pot.",
    )
    scenery(tale, 0.3)
    tale.one_of(
        '"Then I will cook soup out of nothing," said {h}, and {h.he} put the pot on the fire.',
        "{h} made a fire, filled the pot with water, and began to stir, as if it were the best soup ever made.",
    )
    tale.paragraph()
    tale.one_of(
        '"What are you cooking?" asked {f.first}. "Soup," said {h}. "It only needs a little something."',
        '{F.first} came by and smelled the air. "Soup?" {f.he} asked. "Almost," said {h}.',
    )
    tale.say(f"{{f}} ran home and came back with {{first}}. {first[1]}.")
    tale.one_of(
        f'Then {{e.first}} came. "I have {{second}}," said {{e}}. "It is not much." {{h}} put it into the pot.'
        f" {second[1]}.",
        f'{{E.first}} looked over the fence. "May I add {{second}}?" {{e.he}} asked. {second[1]}.',
    )
    tale.one_of(
        f"Last of all came {{s.first}}, with {{third}}. {third[1]}.",
        f'"I have {{third}}," said {{s.first}} in a small voice. {third[1]}.',
    )
    tale.paragraph()
    tale.one_of(
        "They all sat down around the pot and ate until the last drop was gone.",
        "And then there was soup for {h}, for {f}, for {e}, and for {s}, and everyone had two bowls.",
    )
    tale.one_of(
        '"And you made this out of nothing?" asked {s}. "No," said {h}. "I made it out of all of you."',
        '"This is the best soup of my life," said {e}.',
        '"Alone I had only {first}," said {f}, "and that is no soup."',
    )
    close_tale(
        tale,
        "After that, they cooked together every Sunday.",
        "A little from everyone, {h} found, is plenty for all.",
        "The fire burned low, and nobody was hungry anymore.",
        'And when somebody asked for the recipe, {h} said, "Begin with an empty pot and some friends."',
    )


# what somebody needs, who needs it: read as a chain, each gives the one before
_SWAPS = table("""
a basket / a hen farmer whose eggs lay in the grass / six brown eggs
a ball of string / a boy whose kite had no line / a paper kite
a wooden spoon / a cook who had to stir with a stick / a pot of hot soup
a big umbrella / a painter whose picture was getting wet / a small picture
a straw hat / a fisherman with a red, burned nose / two silver fish
a woolen blanket / a shepherd who was cold at night / a bag of wool
a candle / an old woman who sat in the dark / a jar of honey
a little bell / a goat girl whose goat kept getting lost / a round cheese
a rope / a sailor whose boat was drifting / a shining shell
a broom / a miller who was white with dust / a sack of flour
""")
# what the hero wants to have at the end, and why
_WANTS = table("""
a warm coat for {g} / {g} was always cold
a doll for {f.first} / {f} was ill in bed
a new string for the fiddle / without it there was no music
medicine for {m} / {m} had a bad cough
a pair of shoes / {h.his} own were full of holes
a lamp for the long evenings / it was too dark to read
""")


def swaps(tale: Tale) -> None:
    """One small thing is swapped for another, and that for another, each time because somebody needs it, up to a"
    " wish."""
    begin(tale, season=tale.pick(("spring", "summer", "autumn")), people=True)
    first, second = tale.sample(_SWAPS, 2)
    want, why = tale.pick(_WANTS)
    open_tale(tale)
    tale.say(f"{{h.First}} wished for {want}, because {why}. But {{h.he}} had no money. {{h.He}} had only {first[0]}.")
    tale.one_of(
        '"You never know what it is good for," said {g}. So {day} {h} took it and set out.',
        '"Then I will see what it can do," thought {h}, and {day} {h.he} went out into the world.',
    )
    tale.paragraph()
    tale.say(f'Soon {{h}} met {first[1]}. "Take this," said {{h}}, and {{h.he}} gave away {_the(first[0])}.')
    tale.say(f'"Thank you! Let me give you something too." And so {{h}} got {first[2]}.')
    tale.say(f"A little farther on there was {second[1]}. {{h}} had nothing to give but {_the(first[2])}.")
    tale.one_of(
        f"They agreed to swap, and now {{h}} had {second[2]}.",
        f"It was just the right thing for supper, and in return {{h}} got {second[2]}."
        if any(food in first[2] for food in ("eggs", "soup", "fish", "honey", "cheese"))
        else f"It was gladly taken, and in return {{h}} got {second[2]}.",
    )
    tale.paragraph()
    tale.one_of(
        f'At last {{h}} came to the market. A merchant saw {_the(second[2])}. "I have been looking for that all day!"'
        f" he"
        f' cried. "What do you want for it?" {{h}} looked around, and there it was: {want}!'.replace(
            "{f.first}", "{f}"
        ),
        f'When {{h}} came to the town, a woman stopped {{h.him}}. "My little girl would love {_the(second[2])}," she'
        f" said."
        f' "Will you take something for it?" And what did she have? It was {want}!'.replace("{f.first}", "{f}"),
    )
    tale.one_of(
        f'{{h}} ran all the way home. "And all that from {first[0]}!" said {{g}}.',
        f"So {first[0]} had become just what was needed. {{h}} could hardly believe it.",
    )
    close_tale(
        tale,
        "And everyone on the way had gotten what they needed too.",
        "Small things, {h} learned, go a long way.",
        "{h} sang all the way, and {h.his} feet hardly touched the ground.",
    )


def _the(phrase: str) -> str:
    """`a round cheese` → `the round cheese`, `six brown eggs` → `the six brown eggs`."""
    return "the " + (phrase.removeprefix("a ").removeprefix("an "))


# what is shouted for fun, what comes in truth, how it ends after all
_ALARMS = table("""
the sheep are running away / the gate blew open and all the sheep really ran away / they brought back every sheep
    before sunrise
the bridge is breaking / a flood came and the bridge really began to break / they tied it fast with ropes
there is a fire in the barn / a lamp fell over and the straw in the barn really began to burn / they put out the fire
    with wet sacks
a bear is in the orchard / a big brown bear really came and shook the apple trees / they chased it away with pots and
    pans
the boat is sinking / the old boat really filled with water / they pulled it to the shore together
the river is rising / the river really rose and came up to the doors / they built a wall of sacks and stones
""")


def false_alarm(tale: Tale) -> None:
    """A joke that frightens everybody, once and twice; then it is true, and only one still believes it."""
    begin(tale, season=tale.pick(("spring", "summer", "autumn")), people=True)
    alarm, truth, rescue = tale.pick(_ALARMS)
    tale.let(alarm=alarm)
    open_tale(tale, tale.pick(("", "full of tricks", "bored")))
    tale.one_of(
        '{h.First} liked to play jokes. {Day}, {h.he} shouted, "Help! {Alarm}!"',
        '{Day}, {h.first} wanted to see everybody run. "Help! Help!" {h.he} shouted. "{Alarm}!"',
    )
    tale.one_of(
        "{F.first} came, {e.first} came, and {m} came with a bucket in each hand. But nothing had happened, and {h}"
        " laughed.",
        "Everyone dropped what they were doing and ran. {h} laughed until {h.his} stomach hurt.",
    )
    tale.one_of(
        "The next day {h.he} did it again, and again they all came.",
        '"That was not funny," said {e.first}. But the next week {h} did it again.',
    )
    tale.paragraph(f"Then, one night, {truth}.")
    tale.one_of(
        '"Help!" shouted {h}. "{Alarm}! It is true this time!" But the doors stayed closed. "It is only {h} again,"'
        " they said.",
        '{h} ran from house to house. "Please come! {Alarm}!" But nobody got up. "We know that joke," they said.',
    )
    tale.one_of(
        'Only {f.first} looked {h} in the face. "You are crying," said {f}. "I believe you."',
        'Then {f.first} opened the window. {f.He} heard how {h}\'s voice shook. "This is no joke," {f} said.',
    )
    tale.say(f"{{f}} rang the big bell, and now they all came, and {rescue}.")
    tale.paragraph()
    tale.one_of(
        '"I am sorry," said {h} in a low voice. "I will never do it again."',
        "{h} went to each of them, one by one, and said that {h.he} was sorry.",
    )
    tale.one_of(
        '"Trust is like a glass," said {e.first}. "It breaks quickly, but with patience it can be mended."',
        '"We will believe you again," said {m}, "but it will take some time."',
        '"Why did you believe me?" {h} asked {f}. "Because I know your real voice," said {f}.',
    )
    close_tale(
        tale,
        "And when {h} called for help after that, it was always true.",
        "From then on, {h} made only jokes that everyone could laugh about.",
        "{h} kept that promise, and little by little, they trusted {h.him} again.",
    )


# who is envied (a bird, a fish …), for what, what happens when one tries, what they envy in return
_ENVY = table("""
swallow / fly over the roofs / jumped from a low wall and landed in a bush / lie in the soft grass and sleep all night
fish / breathe under water / put {h.his} face into the water and came up coughing / sit in a tree and eat cherries
frog / jump across the pond / jumped as far as {h.he} could and landed in the mud / sing a song with real words
cat / see in the dark / walked around at night and bumped into a door / laugh out loud
horse / run like the wind / ran until {h.he} had no breath left / hold a cup in two hands and drink warm milk
spider / walk up the wall / tried to climb the wall and slid down again / be hugged by somebody every evening
snail / carry a house around / put a box on {h.his} back and fell over / run down a hill with a friend
nightingale / sing beautifully / sang until everyone covered their ears / tell a story from beginning to end
""")


def envy(tale: Tale) -> None:
    """The hero wants to be like another; trying goes wrong; the other turns out to have envied the hero."""
    begin(tale, season=tale.pick(("spring", "summer")))
    other, gift, attempt, own = tale.pick(_ENVY)
    tale.let(other=other, gift=gift)
    open_tale(tale)
    tale.one_of(
        '{Day}, {h.first} watched a {other} {place.at}. "If only I could {gift}!" {h.he} sighed.',
        '{h.First} was not content. {Day}, {h.he} saw a {other} {place.at}. "I wish I could {gift}, like you," {h.he}'
        " said.",
    )
    scenery(tale)
    tale.paragraph()
    tale.say(f"So {{h}} tried it. {{h.He}} {attempt}.")
    tale.one_of(
        '{F.first} had seen it all. "What are you doing?" {f.he} asked. "I am learning to {gift}," said {h}, and'
        " {h.his}"
        " ears turned red.",
        "It hurt a little, but being laughed at would have hurt more. Luckily, only {f.first} was there, and {f} did"
        " not laugh.",
    )
    tale.one_of(
        '{h} sat down, sad and tired. "I cannot do anything special," {h.he} said.',
        '"It is not fair," said {h}. "Why can a {other} do it, and not I?"',
    )
    tale.paragraph()
    tale.say(
        f'Then the {{other}} came closer. "How strange," it said. "I have always wished that I could {own}, like you."'
    )
    tale.one_of(
        "{h} was astonished. {h.He} had never thought of that as something special.",
        '"Like me?" asked {h}. {h.He} thought about it for a long time.',
    )
    tale.one_of(
        '"I could tell you how it feels to {gift}," said the {other}, "and you could tell me how it feels to be you."'
        " And so"
        " they did.",
        "They looked at each other, and then they both had to laugh.",
        '"Then let us both be glad," said {h}.',
    )
    close_tale(
        tale,
        "From that day on, {h} was quite happy to be a {h.kind}.",
        '"I would not change places with anyone," {h} told {f}.',
        "Everyone can do something, thought {h}, and nobody can do everything.",
        "And whenever {h} saw a {other}, {h.he} waved.",
    )


# a riddle, its answer, the hint that the hero comes upon
_RIDDLES = table("""
What has teeth but cannot bite / a comb / {f} was combing a tangle out of {f.own} hair
What runs but has no legs / a river / they heard the water running over the stones
What gets wetter the more it dries / a towel / {f} wiped {f.own} wet hands on a towel
What has a neck but no head / a bottle / {f} took a drink from a bottle
What has hands but cannot clap / a clock / somewhere a clock struck four
What goes up and never comes down / your age / {f} said that soon {f.he} would have a birthday
What can you catch but not throw / a cold / {f} sneezed three times
What is full of holes but still holds water / a sponge / {f} squeezed the water out of a sponge
What follows you all day and leaves at night / your shadow / a cloud passed, and {h}'s shadow came back
What speaks without a mouth / an echo / {f} shouted, and the rocks shouted back
""")


def riddle(tale: Tale) -> None:
    """A riddle bars the way; first answers are wrong; something seen by chance gives the answer."""
    begin(tale, season=tale.pick(("spring", "summer", "autumn")))
    question, answer, hint = tale.pick(_RIDDLES)
    wrong = tale.pick([row[1] for row in _RIDDLES if row[1] != answer and not row[1].startswith("your")])
    tale.let(
        question=question, answer=answer, wrong=wrong, guard="[an old goat|a gray heron|a huge toad|a proud peacock]"
    )
    guard = tale.scope["guard"]
    assert isinstance(guard, str)
    tale.let(that="the " + guard.split()[-1])
    open_tale(tale)
    tale.one_of(
        "{Day}, {h.first} and {f.first} were on their way to {place}. But on the path sat {guard}.",
        "{Day}, {h.first} wanted to go to {place} with {f.first}. In the middle of the bridge stood {guard}.",
    )
    tale.one_of(
        '"Whoever wants to pass must answer my riddle," said {that}. "{question}?"',
        '"Stop!" said {that}. "First tell me this. {question}?"',
    )
    tale.paragraph()
    tale.one_of(
        '"Is it {wrong}?" asked {h}. "Wrong!" said {that}, and closed one eye.',
        '"I know!" said {f}. "It is {wrong}." But {that} only shook its head.',
    )
    tale.one_of(
        "They sat down at the side of the path and thought so hard that their heads hurt.",
        '"You may try once more," said {that}, "and take your time."',
        '{h} said nothing for a long while. "Let us go home," said {f}. "Not yet," said {h}.',
    )
    tale.say(f"Just then, {hint}.")
    tale.one_of(
        '{h} jumped up. "I have it!" {h.he} cried. "It is {answer}!"',
        '{h}\'s eyes grew wide. "{Answer}!" {h.he} shouted. "It is {answer}!"',
    )
    tale.paragraph()
    tale.one_of(
        '"Right," said {that}, and bowed, and let them pass.',
        '"Well, well," said {that}. "Nobody has guessed that for a hundred years." And the way was free.',
    )
    tale.one_of(
        '"Without you I would never have guessed it," said {h} to {f}. "But I did nothing!" said {f}.',
        "On the way back, {h} had a riddle for {that}, and {that} is still thinking about it.",
        "They laughed about it all the way to {place}.",
    )
    close_tale(
        tale,
        "That evening, {h} asked {m} the same riddle, and {m} did not know the answer.",
        "Sometimes, thought {h}, the answer is right in front of you.",
        "And ever since, {h} and {f} have collected riddles.",
    )


# what is written, who answers, from where, what the answer brings
_LETTERS = table("""
Is anybody there / a lighthouse keeper's daughter / an island far away / a drawing of a whale
Who would like to be my friend / a boy in a mountain village / the other end of the river / a pressed blue flower
I can stand on my head. Can you / an old captain / a ship on the sea / a small brass compass
What do you see from your window / a girl who had to stay in bed / a white house by the shore / a string of paper
    stars
I have a secret hiding place. Do you / a family of beavers / the great dam down the river / a carved wooden button
Please write back / a baker with a red beard / the town beyond the hills / a cookie in the shape of a heart
""")


def letter_in_a_bottle(tale: Tale) -> None:
    """A letter goes down the water in a bottle; waiting, doubts, and then an answer with something in it."""
    begin(tale, season=tale.pick(("spring", "summer")))
    message, writer, where, gift = tale.pick(_LETTERS)
    tale.let(message=message, writer=writer, where=where, gift=gift)
    open_tale(tale, tale.pick(("", "a little lonely", "curious")))
    tale.let(ending="!" if message.startswith("Please") else "?")
    tale.one_of(
        '{Day}, {h.first} found an empty bottle by the water. {h.He} wrote on a piece of paper: "{message}{ending}"',
        '{Day}, {h.first} had nobody to play with. So {h.he} took a pen and wrote, "{message}{ending}" Then {h.he}'
        " looked for a bottle.",
    )
    tale.one_of(
        "{h} put the paper in, closed the bottle with a cork, and let it swim away.",
        "The bottle bobbed up and down, turned around twice, and was gone.",
    )
    tale.paragraph()
    tale.one_of(
        "{h} went to the water every day. There came leaves, and there came sticks, but no bottle.",
        'One week passed, and then another. "Nobody will ever find it," said {f.first}.',
    )
    tale.one_of(
        '"The world is big, and water takes its time," said {g}.',
        '{h} did not give up hope. "It is still on its way," {h.he} said.',
        "{h} almost forgot about it.",
    )
    tale.paragraph()
    tale.one_of(
        "Then, one morning, something knocked against the stones. It was a bottle, and there was a letter in it!",
        'And one day, {f.first} came running with a bottle. "It is for you!" {f} called.',
    )
    tale.say("The answer was from {writer}, and it came from {where}.")
    tale.one_of(
        "With the letter there was {gift}. {h} held it up to the light and could not stop smiling.",
        "And out of the bottle fell {gift}. {h} danced along the shore.",
    )
    tale.one_of(
        "That same evening, {h} wrote back. This time it was a long letter.",
        "{h} read the letter aloud to {m}, to {f.first}, and once more to {h.himself}.",
    )
    close_tale(
        tale,
        "Since then, the bottle has gone back and forth, year after year.",
        "Somewhere, far away, there was somebody who thought of {h}.",
        "{h} kept the letter under the pillow, and there was not a better pillow anywhere.",
        "And {h} knew that somewhere {h.he} had a friend.",
    )


# what is shouted angrily, what is shouted kindly
_ECHOES = table("""
Go away / Come here
I do not like you / I like you
You are silly / You are wonderful
Be quiet / Sing with me
Leave me alone / Be my friend
""")


def echo(tale: Tale) -> None:
    """Angry words come back from the hills angrily, and kind ones kindly."""
    begin(tale)
    angry, kind = tale.pick(_ECHOES)
    tale.let(angry=angry, kind=kind)
    open_tale(tale)
    tale.one_of(
        "{Day}, {h.first} was in a bad mood. {h.He} had quarreled with {f.first} about [nothing at all|a broken toy|a"
        " game].",
        "{Day}, nothing went right for {h.first}. {h.He} stumbled over a stone, {h.he} tore {h.his} sleeve, and"
        " {f.first} laughed.",
    )
    tale.one_of(
        '{h} walked up to the high rocks to be alone. "{Angry}!" {h.he} shouted into the valley.',
        '{h} climbed the hill and stamped {h.his} feet. "{Angry}!" {h.he} shouted as loud as {h.he} could.',
    )
    tale.say('"{angry}!" a voice shouted back.')
    tale.one_of(
        '{h} was surprised. "Who are you?" {h.he} called. "Who are you?" asked the voice.',
        "That made {h} even more angry. {h.He} shouted it again, and the voice shouted it again too.",
    )
    tale.paragraph()
    tale.one_of(
        '{h} ran home and told {m} about it. "Somebody up there is very rude," {h.he} said.',
        '"{g}, there is somebody in the rocks who hates me," said {h} at home.',
    )
    tale.one_of(
        '"Go up again tomorrow," said {g}, "but say something friendly, and listen."',
        '{g} smiled. "That voice only gives back what it gets. Try it another way."',
    )
    tale.paragraph()
    tale.say('The next day, {h} stood on the rocks again. "{kind}!" {h.he} called, a little shyly.')
    tale.say('"{kind}!" answered the voice, soft and clear.')
    tale.one_of(
        "{h} laughed, and the whole valley laughed too.",
        "It sounded so friendly that {h} felt warm all over.",
    )
    tale.one_of(
        "Then {h} ran to {f} and said the same thing to {f.him}. And what did {f} do? {f.He} said it right back.",
        'On the way home, {h} met {f}. "I am sorry about yesterday," said {h}. "I am sorry too," said {f}, just like'
        " an echo.",
    )
    close_tale(
        tale,
        "What you call into the world, {h} learned, comes back to you.",
        "After that, {h} was careful about what {h.he} shouted.",
        '"{kind}," whispered {h} before falling asleep, and far away, something seemed to answer.',
    )


# what is too heavy, how they pull or push, what becomes of it
_HEAVY = table("""
a turnip as big as a barrel / pulled at the leaves / a turnip stew for three days
a pumpkin as tall as a door / pushed and pushed / a hundred little pies
a fallen tree across the road / pulled at the branches / a long bench for everyone
a cart stuck in the mud / pushed from behind / a ride home for all who had helped
a rock in the middle of the field / pushed with a long pole / a fine seat with a view
a boat high up on the sand / pulled at the rope / a trip around the bay
""")


def pull_together(tale: Tale) -> None:
    """Something too heavy for one, for two, for all; the smallest comes last, and just that little more is enough."""
    begin(tale, season=tale.pick(("summer", "autumn")))
    heavy, how, result = tale.pick(_HEAVY)
    last = tale.pick(("ladybug", "wren", "beetle", "tiny caterpillar", "young frog", "grasshopper"))
    tale.let(heavy=heavy, how=how, last=last, it="the " + heavy.split()[1 if heavy.split()[1] != "fallen" else 2])
    open_tale(tale)
    tale.one_of(
        "{Day}, {h.first} found {heavy}. {h.He} {how}, but it did not move.",
        '{Day}, {heavy} had to be moved. "I can do that," said {h.first}. {h.He} {how} until {h.his} face was red. Nothing'
        " happened.",
    )
    tale.one_of(
        "So {h} called {f.first}. The two of them {how}, but {it} stayed where it was.",
        '"Wait, I will help you!" called {f.first}. They {how}, both together. It was no use.',
    )
    tale.paragraph()
    tale.one_of(
        "Then came {e.first}, and then came {m}. One, two, three! They {how} again. It moved as much as a hair, and"
        " no more.",
        '{h} called {m}, and {m} called {e.first}. All four of them {how}. "Once more!" said {e}. But it was not'
        " enough.",
    )
    tale.one_of(
        'Then a {last} came along. "May I help?" it asked. Everybody laughed. "You?" said {f}.',
        '"Let me try too," said a thin voice. It was a {last}. "You are much too small," said {e}.',
    )
    tale.one_of(
        '"Every little bit helps," said {h}. "Come and stand beside me."',
        '"We need everyone," said {h}, and {h.he} made room.',
    )
    tale.paragraph()
    tale.one_of(
        "One, two, three! And with a great jerk, {it} came loose, and they all fell over each other.",
        "They counted to three. There was a crack and a groan, and then, slowly, slowly, {it} began to move.",
    )
    tale.one_of(
        '"You see?" said the {last}. "It was only a little that was missing."',
        "They lifted the {last} up high and cheered.",
    )
    tale.say(f"And so there was {result}.")
    close_tale(
        tale,
        "The {last} got the best place of all.",
        "Nobody is too small to help, said {h}, and nobody laughed this time.",
        "What one cannot do, and two cannot do, all can do together.",
    )
